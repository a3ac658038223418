"""Image files: PNG, JPEG and whatever else Pillow reads; one subfolder per class, named as the class.

    flowers/rose/1.jpg …  flowers/tulip/1.jpg …            classes are the sorted names: rose 0, tulip 1
    flowers/train/rose/…  flowers/test/rose/…  (val/…)     parts that the data has of its own
    photos/1.jpg …        or one file alone                images without labels, for predict

A folder named `train` is a part where it holds subfolders, else a class. Images that lie elsewhere are left out, and counted.

Column `x` is uint8 (1, H, W) where all images are gray, else (3, H, W): one image in colour makes all of them so. A row is
one image of one size: all files have it, or are resized to what was asked for (bilinear, without keeping proportions, as
a model takes them). Photos that were taken with the camera turned stand upright, as viewers show them. Opening looks at
each file's header alone; pixels are decoded block by block, while rows are read.

Pillow is needed here only (the extra `data`). Its limit for how large an image may get when it is unpacked holds.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.data.chunks import CHUNK_BYTES_MAX
from p2pnn.data.table import PARTS, ColumnType, Source, Table
from p2pnn.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2"}
)
"""Other files in a folder, such as a Thumbs.db, are passed over."""

UNREAD: Final = frozenset({".heic", ".heif", ".avif", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"})
"""Images all the same: a person is told that they are left out."""

GRAY: Final = frozenset({"1", "L", "LA"})
COLOUR: Final = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
"""Pillow's modes of 8 bits; those of more, such as I;16, would lose most of what they hold."""


USUAL_SIZE: Final = (224, 224)
"""What is advised where images are too large: ImageNet's, height × width."""

ORIENTATION: Final = 0x0112
"""Exif's tag for how the camera was held."""
LYING: Final = 5
"""From this orientation on, rows of the file are columns of the picture."""
TURNED: Final = ("JPEG", "MPO", "WEBP")
"""What cameras write. Pillow turns a TIFF by itself, and would have to decode a PNG to find the tag."""


def is_image(path: Path) -> bool:
    """Whether the file's name is that of an image. A hidden file is none: systems keep their own there, such as `._1.png`."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def is_folder(path: Path) -> bool:
    """Whether the folder holds images, by class, by part and class, or as they are."""
    return any(is_image(file) for depth in ("*", "*/*", "*/*/*") for file in path.glob(depth))


def open_folder(
    path: Path,
    size: tuple[int, int] | None = None,
    channels: int = 0,
    classes: Sequence[str] = (),
    *,
    labelled: bool = True,
    suggested: tuple[int, int] | None = None,
) -> Source:
    """The images of a folder. size: (height, width) to resize to, None to leave them; channels: 1, 3, or 0 for what they have.

    classes: a trained model's, to number labels alike; with labelled False a subfolder may be of none of them. suggested: the
    size that an error advises to resize to. Raises DataError: Pillow is missing, a file cannot be read, sizes differ, a class
    is empty or unknown.
    """
    parts = _parts(path, labelled=labelled)
    known = tuple(classes) or tuple(folder.name for folder in _folders(parts["train"]))
    found = {part: _listed(folder, known, labelled=labelled) for part, folder in parts.items()}
    if not classes:
        _check_classes(parts["train"], known, found["train"])
    used = [file for files in found.values() for file, _ in files]
    shape, resized = _shape(used, size, channels, suggested)
    tables = {
        part: ImageTable(files, shape, labelled=labelled and bool(_folders(parts[part])), resized=resized)
        for part, files in found.items()
    }
    name, remarks = path.resolve().name, _left_out(path, used)
    return Source(name, tables["train"], tables.get("test"), known, tables.get("validation"), remarks=remarks)


def open_image(path: Path, size: tuple[int, int] | None = None, channels: int = 0) -> Source:
    """One image, without a label. Arguments and errors as of `open_folder`."""
    shape, resized = _shape([path], size, channels)
    return Source(path.stem, ImageTable([(path, 0)], shape, labelled=False, resized=resized))


class ImageTable(Table):
    """x: uint8 of `shape` (channels, height, width); y: int64, the class's number, where there are classes.

    resized: the first file that has another size, if there is one.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        shape: tuple[int, int, int],
        *,
        labelled: bool,
        resized: Path | None = None,
    ) -> None:
        self._files = files
        self._shape = shape
        self.resized = resized
        columns = {"x": ColumnType("uint8", shape)} | ({"y": ColumnType("int64", ())} if labelled else {})
        super().__init__(str(files[0][0].parent if files else "the folder"), len(files), columns)

    def blocks(self, rows_max: int, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, self.rows, rows_max):
            files = self._files[start : start + rows_max]
            read: dict[str, NDArray[Any]] = {}
            if "x" in names:
                read["x"] = np.stack([_pixels(path, self._shape) for path, _ in files])
            if "y" in names:
                read["y"] = np.array([label for _, label in files], np.int64)
            yield read

    def where(self, name: str, row: int, entry: tuple[int, ...]) -> str:
        return str(self._files[row][0])

    @property
    def files(self) -> list[Path]:
        """The file of each row."""
        return [path for path, _ in self._files]


def _folders(path: Path) -> list[Path]:
    """The subfolders that stand for classes, sorted by name."""
    return sorted(
        (p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))), key=lambda p: p.name
    )


def _parts(path: Path, *, labelled: bool) -> dict[str, Path]:
    """Part → its folder; the whole folder is to train on where none in it is named so and holds the folders of classes."""
    found: dict[str, Path] = {}
    for part, names in PARTS.items():
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is not None:
            found[part] = folder
    if "train" not in found or not _folders(found["train"]):
        return {"train": path}
    for folder in found.values():
        if labelled and not _folders(folder):
            raise DataError(
                f"{folder} holds no subfolders; put the images of each class into one that is named as the class"
            )
    return found


def _left_out(path: Path, used: Sequence[Path]) -> tuple[str, ...]:
    """A sentence where the folder holds more images than are read."""
    taken = set(used)
    images = (p for p in path.rglob("*") if is_image(p) or p.suffix.lower() in UNREAD)
    rest = sorted(p for p in images if p not in taken and not p.is_dir())
    if not rest:
        return ()
    return (
        f"{len(rest):,} images in {path} are left out, such as {rest[0]}; read are files directly in the folder of a class, of "
        f"the kinds {', '.join(sorted(SUFFIXES))}",
    )


def _listed(folder: Path, classes: Sequence[str], *, labelled: bool) -> list[tuple[Path, int]]:
    """(file, class number) of all images, sorted by class and name; without classes those of the folder itself."""
    number = {name: index for index, name in enumerate(classes)}
    places = [(p, number.get(p.name)) for p in _folders(folder)] or [(folder, 0)]
    found: list[tuple[Path, int]] = []
    for place, label in places:
        files = sorted(file for file in place.iterdir() if is_image(file) and file.is_file())
        if label is None and files and labelled:
            raise DataError(
                f"{place} stands for a class {place.name!r}, which is none of the {len(classes)} known classes "
                f"({', '.join(classes[:10])})"
            )
        found += [(file, label or 0) for file in files]
    if not found:
        raise DataError(f"{folder} holds no images that can be read ({', '.join(sorted(SUFFIXES))})")
    return found


def _check_classes(folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> None:
    filled = {label for _, label in files}
    for label, name in enumerate(classes):
        if not name.isprintable():
            raise DataError(
                f"{str(folder / name)!r} stands for a class, whose name takes no control characters; rename it"
            )
        if label not in filled:
            raise DataError(f"{folder / name} holds no image, so there is nothing to learn the class {name!r} from")
    if len(classes) == 1:
        raise DataError(
            f"{folder} has one subfolder, {classes[0]}; classes are told apart by their subfolders, of which two are needed"
        )


def _shape(
    files: Sequence[Path], size: tuple[int, int] | None, channels: int, suggested: tuple[int, int] | None = None
) -> tuple[tuple[int, int, int], Path | None]:
    """(channels, height, width) of a row, and the first file that has another size, from the files' headers."""
    first: tuple[Path, tuple[int, int]] | None = None
    resized: Path | None = None
    gray = True
    for path in files:
        with _opened(path) as image:
            if image.mode not in GRAY and image.mode not in COLOUR:
                raise DataError(f"{path} has pixels of the kind {image.mode}; save it with 8 bits per channel")
            gray = gray and image.mode in GRAY
            found = image.size if _orientation(path, image) < LYING else image.size[::-1]
        if size is None and first is not None and found != first[1]:
            height, width = suggested or (first[1][1], first[1][0])
            raise DataError(
                f"{first[0]} has {first[1][1]} × {first[1][0]} pixels (height × width) but {path} {found[1]} × {found[0]}; "
                f"all must have one size: say --image-size {height}x{width} to have them resized"
            )
        if size is not None and found != size[::-1]:
            resized = resized or path
        first = first or (path, found)
    assert first is not None
    height, width = size or (first[1][1], first[1][0])
    shape = channels or (1 if gray else 3), height, width
    if math.prod(shape) > CHUNK_BYTES_MAX:
        height, width = suggested or USUAL_SIZE
        raise DataError(
            f"{first[0]} has {shape[1]:,} × {shape[2]:,} pixels (height × width), more than a row of data may hold; say "
            f"--image-size {height}x{width}, or another size, to have all resized"
        )
    return shape, resized


def _pixels(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """uint8 of `shape`; an animation's first picture."""
    channels, height, width = shape
    with _opened(path) as image:
        try:
            from PIL.ImageOps import exif_transpose

            upright = exif_transpose(image) if _orientation(path, image) > 1 else image
            if "transparency" in upright.info:  # Pillow would warn that it drops it
                upright = upright.convert("RGBA")
            pixels = upright.convert("L" if channels == 1 else "RGB")
            if pixels.size != (width, height):
                from PIL.Image import Resampling

                pixels = pixels.resize((width, height), Resampling.BILINEAR)
        except Exception as error:  # each of Pillow's formats has its own for a broken file
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        found = np.asarray(pixels, np.uint8)
    return found.reshape(1, height, width) if channels == 1 else np.ascontiguousarray(found.transpose(2, 0, 1))


def _orientation(path: Path, image: Image) -> int:
    """How the camera was held, by Exif: 1 upright … 8."""
    try:
        return int(image.getexif().get(ORIENTATION, 1)) if image.format in TURNED else 1
    except Exception as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _opened(path: Path) -> Image:
    """The image, its header read. A context: it closes the file."""
    try:
        import PIL.Image
    except ImportError as error:
        install = f"{sys.executable} -m pip install 'pillow>=11'"
        raise DataError(f"{path} is an image, which takes Pillow to read: {install}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(path)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} would unpack to more than {PIL.Image.MAX_IMAGE_PIXELS or 0:,} pixels; make it smaller first"
        ) from error
    except Exception as error:
        reason = "it is none, or damaged" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        raise DataError(f"{path} cannot be read as an image: {reason}") from error
