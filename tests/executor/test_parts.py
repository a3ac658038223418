"""Parts: read back by name, by the safetensors library too; damaged, foreign and newer files."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CheckpointError, StorageError
from p2pnn.executor.parts import Parts, Tensor, piece_name, write
from p2pnn.job.checkpoint import add_bits, tensor_bits
from p2pnn.types import BlobId


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def tensors() -> dict[str, Tensor]:
    dice = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"a/weight": (3, 4), "scalar": (), "b": (5,), "empty": (0, 2)}
    return {name: dice.standard_normal(shape).astype(np.float32).reshape(shape) for name, shape in shapes.items()}


def written(blobs: BlobStore, arrays: dict[str, Tensor]) -> Any:
    return write(blobs, [(name, array.shape, lambda a=array: a) for name, array in arrays.items()])


def test_the_library_reads_what_was_written(blobs: BlobStore) -> None:
    arrays = tensors()
    part = written(blobs, arrays)
    found = load_file(blobs.path(part.blob))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert part.bits == add_bits(tensor_bits(name, array.tobytes()) for name, array in arrays.items())
    assert part.size == blobs.size(part.blob)


def test_tensors_are_found_in_whichever_part_they_are(blobs: BlobStore) -> None:
    arrays = tensors()
    names = sorted(arrays)
    parts = [written(blobs, {n: arrays[n] for n in names[k::2]}) for k in range(2)]
    source = Parts(blobs, [part.blob for part in parts])
    for name in names:
        np.testing.assert_array_equal(source.read(name, arrays[name].shape), arrays[name])
    with pytest.raises(CheckpointError, match="no tensor c, which the model needs"):
        source.read("c", (1,))
    with pytest.raises(CheckpointError, match=r"tensor b of the checkpoint is \(5,\), but the model's is \(6,\)"):
        source.read("b", (6,))


def test_a_foreign_file_is_read_by_its_names(blobs: BlobStore, tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float64)}, tmp_path / "x", metadata={"format": "pt"})
    read = Parts(blobs, [blobs.put((tmp_path / "x").read_bytes())]).read("w", (3,))
    assert read.dtype == np.float32
    assert read.sum() == 3


def test_a_newer_part_is_refused_and_left(blobs: BlobStore, tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "x", metadata={"p2pnn": "2"})
    blob = blobs.put((tmp_path / "x").read_bytes())
    with pytest.raises(CheckpointError, match="format 2, written by a newer p2pnn"):
        Parts(blobs, [blob])
    assert blobs.has(blob)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      ~"])
def test_damaged_and_missing_parts_are_named(blobs: BlobStore, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Parts(blobs, [blobs.put(data)])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Parts(blobs, [BlobId("0" * 64)])


def test_nothing_is_left_of_a_write_that_fails(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Tensor:
        raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match=r"the checkpoint was not written .* No space left"):
        write(blobs, [("a", (2,), lambda: np.zeros(2, np.float32)), ("b", (2,), full)])
    assert list((blobs.root / "temporary").iterdir()) == []
    assert list(blobs.list()) == []


def pieces_of(name: str, array: Tensor, *bounds: int) -> dict[str, Tensor]:
    flat = array.reshape(-1)
    return {piece_name(name, a, b): flat[a:b] for a, b in pairwise((0, *bounds, flat.size))}


def test_pieces_in_several_parts_are_put_together(blobs: BlobStore) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    pieces = list(pieces_of("optimizer/mean/a", array, 5, 20).items())
    parts = [written(blobs, dict(pieces[1:])), written(blobs, dict(pieces[:1]))]
    source = Parts(blobs, [part.blob for part in parts])
    assert "optimizer/mean/a" in source
    np.testing.assert_array_equal(source.read("optimizer/mean/a", (2, 3, 4)), array)


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_missing_piece_is_named_by_those_that_are_there(blobs: BlobStore, left_out: int) -> None:
    pieces = list(pieces_of("s/a", np.arange(24, dtype=np.float32), 5, 20).items())
    del pieces[left_out]
    source = Parts(blobs, [written(blobs, dict(pieces)).blob])
    with pytest.raises(CheckpointError, match=r"the pieces of tensor s/a .* are not the 24 elements"):
        source.read("s/a", (24,))


def test_pieces_of_another_model_are_refused(blobs: BlobStore) -> None:
    source = Parts(blobs, [written(blobs, pieces_of("s/a", np.zeros(24, np.float32), 5)).blob])
    for shape in ((4, 5), (5, 6)):
        with pytest.raises(CheckpointError, match="are not the"):
            source.read("s/a", shape)
