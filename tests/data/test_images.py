import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import Image

from p2pnn.data import images
from p2pnn.data.blobs import BlobStore
from p2pnn.data.fit import Feature
from p2pnn.data.ingest import ingest
from p2pnn.errors import DataError


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def saved(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes of 6 × 4 pixels, in colour."""
    folder = tmp_path / "flowers"
    for number, name in enumerate(("tulip", "rose", "rose")):
        saved(folder / name / f"{number}.png", pixels(number, 6, 4, 3))
    return folder


def rows(source: object, rows_max: int = 10) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(source.train.blocks(rows_max, ["x", "y"]))  # type: ignore[attr-defined]
    return np.concatenate([block["x"] for block in blocks]), np.concatenate([block["y"] for block in blocks])


@pytest.mark.parametrize("rows_max", [1, 2, 10])
def test_one_subfolder_per_class(flowers: Path, rows_max: int) -> None:
    (flowers / "rose" / "Thumbs.db").write_bytes(b"none of ours")
    (flowers / ".cache").mkdir()
    source = images.open_folder(flowers)
    assert (source.name, source.classes, source.ordered) == ("flowers", ("rose", "tulip"), False)
    x, y = rows(source, rows_max)
    assert y.tolist() == [0, 0, 1]
    assert x.dtype == np.uint8
    for row, seed in enumerate((1, 2, 0)):
        np.testing.assert_array_equal(x[row], pixels(seed, 6, 4, 3).transpose(2, 0, 1))
    assert source.train.where("x", 2, ()) == str(flowers / "tulip" / "0.png")


def test_gray_images_have_one_channel_unless_one_has_colour(tmp_path: Path) -> None:
    saved(tmp_path / "a" / "1.png", pixels(1, 3, 3))
    saved(tmp_path / "b" / "1.bmp", pixels(2, 3, 3))
    x, _ = rows(images.open_folder(tmp_path))
    np.testing.assert_array_equal(x, np.stack([pixels(1, 1, 3, 3), pixels(2, 1, 3, 3)]))
    assert images.open_folder(tmp_path, channels=3).columns["x"].shape == (3, 3, 3)
    Image.fromarray(pixels(3, 3, 3, 4)).save(tmp_path / "b" / "2.png")
    x, _ = rows(images.open_folder(tmp_path))
    np.testing.assert_array_equal(x[0], np.repeat(pixels(1, 1, 3, 3), 3, axis=0))
    np.testing.assert_array_equal(x[2], pixels(3, 3, 3, 4)[:, :, :3].transpose(2, 0, 1))


def test_parts_of_its_own(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for name in ("a", "b"):
            for number in range(count):
                saved(tmp_path / part / name / f"{number}.png", pixels(number, 2, 2))
    source = images.open_folder(tmp_path)
    assert source.test is not None
    assert source.validation is not None
    assert (source.train.rows, source.validation.rows, source.test.rows) == (6, 2, 4)
    features = (Feature("image", "x", (1, 2, 2)), Feature("label", "y", (), 2, True, True))
    data = ingest(source, features, BlobStore(tmp_path / "blobs").put, validation_fraction=0.3)
    assert data.validation is not None
    assert data.test is not None
    assert (data.train.rows, data.validation.rows, data.test.rows) == (6, 2, 4)
    assert data.scaling["image"].scale[0] == pytest.approx(1 / 255, rel=0.2)
    saved(tmp_path / "test" / "c" / "1.png", pixels(1, 2, 2))
    with pytest.raises(DataError, match=r"class 'c', which is none of the 2 known classes \(a, b\)"):
        images.open_folder(tmp_path)


def test_sizes_that_differ_are_named_or_resized(flowers: Path) -> None:
    odd = saved(flowers / "tulip" / "9.png", pixels(9, 5, 4, 3))
    with pytest.raises(
        DataError, match=r"6 × 4 pixels .* 5 × 4; all must have one size: say --image-size 6x4"
    ) as error:
        images.open_folder(flowers)
    assert str(odd) in str(error.value)
    x, _ = rows(images.open_folder(flowers, size=(6, 4)))
    assert x.shape == (4, 3, 6, 4)
    np.testing.assert_array_equal(x[2], pixels(0, 6, 4, 3).transpose(2, 0, 1))


def test_photos_stand_upright(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # the file holds the picture turned left by a quarter
    Image.fromarray(np.rot90(pixels(1, 6, 4, 3))).save(tmp_path / "a" / "1.webp", exif=exif, lossless=True)
    saved(tmp_path / "b" / "1.png", pixels(2, 6, 4, 3))
    x, _ = rows(images.open_folder(tmp_path))
    np.testing.assert_array_equal(x.transpose(0, 2, 3, 1), np.stack([pixels(1, 6, 4, 3), pixels(2, 6, 4, 3)]))


def test_images_without_classes_are_for_prediction(flowers: Path) -> None:
    alone = images.open_folder(flowers / "rose", classes=("rose", "tulip"))
    assert list(alone.columns) == ["x"]
    assert alone.train.rows == 2
    one = images.open_image(flowers / "tulip" / "0.png", channels=1)
    assert one.columns["x"].shape == (1, 6, 4)
    assert images.open_folder(flowers, classes=("tulip", "rose")).classes == ("tulip", "rose")
    assert images.is_folder(flowers)
    assert images.is_folder(flowers / "rose")
    assert not images.is_folder(flowers / "none")


def test_what_cannot_be_read_is_named(flowers: Path) -> None:
    broken = flowers / "rose" / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image: it is none, or damaged"):
        images.open_folder(flowers)
    broken.write_bytes((flowers / "rose" / "1.png").read_bytes()[:-40])
    source = images.open_folder(flowers)  # its header is whole
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image"):
        rows(source)
    broken.unlink()
    Image.fromarray(np.zeros((6, 4), np.uint16)).save(flowers / "rose" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has pixels of the kind I;16; save it with 8 bits"):
        images.open_folder(flowers)


def test_a_class_without_images(flowers: Path, tmp_path: Path) -> None:
    (flowers / "aster").mkdir()
    with pytest.raises(DataError, match="aster holds no image, so there is nothing to learn the class 'aster' from"):
        images.open_folder(flowers)
    saved(tmp_path / "lone" / "a" / "1.png", pixels(1, 2, 2))
    with pytest.raises(DataError, match="has one subfolder, a; classes are told apart by their subfolders"):
        images.open_folder(tmp_path / "lone")
    with pytest.raises(DataError, match="holds no images that can be read"):
        images.open_folder(flowers / "aster")


@pytest.mark.parametrize("limit", [20, 8])
def test_an_image_that_unpacks_to_too_much(flowers: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(
        PIL.Image, "MAX_IMAGE_PIXELS", limit
    )  # a warning of Pillow's above it, an error above twice that
    with pytest.raises(DataError, match=rf"would unpack to more than {limit} pixels"):
        images.open_folder(flowers)


def test_without_pillow(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"takes Pillow to read: .*python\S* -m pip install 'pillow>=11'"):
        images.open_folder(flowers)


def test_images_that_are_left_out_are_counted(flowers: Path) -> None:
    assert images.open_folder(flowers).remarks == ()
    saved(flowers / "rose" / "more" / "1.png", pixels(1, 6, 4, 3))
    saved(flowers / "2.png", pixels(1, 6, 4, 3))
    (flowers / "rose" / "3.HEIC").write_bytes(b"a photo")
    (flowers / "rose" / "gone.png").symlink_to(flowers / "nowhere.png")
    source = images.open_folder(flowers)
    assert source.train.rows == 3
    assert [remark.partition("; read are")[0] for remark in source.remarks] == [
        f"4 images in {flowers} are left out, such as {flowers / '2.png'}"
    ]


def test_what_a_system_puts_beside_files_is_no_image(flowers: Path) -> None:
    (flowers / "rose" / "._1.png").write_bytes(b"resource fork")
    assert images.open_folder(flowers).train.rows == 3
    assert images.open_folder(flowers).remarks == ()


def test_a_class_may_be_called_as_a_part(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        saved(tmp_path / name / "1.png", pixels(1, 2, 2))
    assert images.open_folder(tmp_path).classes == ("bus", "train")


def test_a_part_without_classes_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / "train" / name / "1.png", pixels(1, 2, 2))
    saved(tmp_path / "test" / "1.png", pixels(1, 2, 2))
    with pytest.raises(DataError, match=r"test holds no subfolders; put the images of each class into one"):
        images.open_folder(tmp_path)
    found = images.open_folder(tmp_path, classes=("a", "b"), labelled=False)
    assert found.test is not None
    assert found.test.rows == 1


def test_where_labels_do_not_matter_any_subfolder_will_do(flowers: Path) -> None:
    with pytest.raises(DataError, match="stands for a class 'rose', which is none of the 2 known classes"):
        images.open_folder(flowers, classes=("cat", "dog"))
    found = images.open_folder(flowers, classes=("cat", "dog"), labelled=False).train
    assert list(found.columns) == ["x"]
    assert [path.name for path in found.files] == ["1.png", "2.png", "0.png"]  # type: ignore[attr-defined]


def test_a_class_whose_name_a_terminal_would_obey_is_refused(flowers: Path) -> None:
    saved(flowers / "a\x1bb" / "1.png", pixels(1, 6, 4, 3))
    with pytest.raises(DataError, match=r"a\\x1bb' stands for a class, whose name takes no control characters"):
        images.open_folder(flowers)


def test_photos_that_are_too_large_are_to_be_resized(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name / "1.png", np.zeros((1700, 1700, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"1,700 × 1,700 pixels .*, more than a row of data may hold; say --image-size 224x224"
    ):
        images.open_folder(tmp_path)
    assert images.open_folder(tmp_path, size=(20, 30)).columns["x"].shape == (3, 20, 30)
    assert images.open_folder(tmp_path, size=(20, 30)).train.resized == tmp_path / "a" / "1.png"  # type: ignore[attr-defined]


def test_what_lets_light_through_is_read_without_a_warning(flowers: Path) -> None:
    seen = Image.fromarray(pixels(7, 6, 4, 3)).convert("P")
    seen.save(flowers / "rose" / "3.png", transparency=bytes([0] * 10 + [255] * 246))
    x, _ = rows(images.open_folder(flowers))
    np.testing.assert_array_equal(x[2], np.asarray(seen.convert("RGB")).transpose(2, 0, 1))
