import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pnn.data import chunks
from p2pnn.errors import DataError, StorageError


@settings(max_examples=60)
@given(
    st.sampled_from(chunks.DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=5, max_side=5))
    )
)
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("chunk") / "chunk"
    path.write_bytes(chunks.write(rows))
    back = chunks.open(path)
    assert back.dtype == rows.dtype
    assert back.shape == rows.shape
    assert back.tobytes() == rows.tobytes()
    assert not back.flags.writeable


def test_the_bytes_are_those_of_the_document() -> None:
    blob = chunks.write(np.array([[1, 2], [3, 4], [5, 6]], dtype=">i2"))
    assert blob[:8] == b"p2pnnchk"
    assert struct.unpack("<II", blob[8:16]) == (1, 1)
    assert blob[16:24] == b"int16\0\0\0"
    assert struct.unpack("<QQ6I", blob[24:64]) == (3, 4, 2, 0, 0, 0, 0, 0)
    assert blob[64:] == bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0])


def test_strided_rows_are_stored_in_c_order(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    (tmp_path / "c").write_bytes(chunks.write(rows))
    np.testing.assert_array_equal(chunks.open(tmp_path / "c"), rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b"", "not a data chunk"),
        (lambda b: b[:40], "not a data chunk"),
        (lambda b: b"PK" + b[2:], "not a data chunk"),
        (lambda b: b[:8] + struct.pack("<I", 2) + b[12:], "format 2, written by a newer p2pnn"),
        (lambda b: b[:8] + struct.pack("<I", 0) + b[12:], "makes no sense"),
        (lambda b: b[:12] + struct.pack("<I", 7) + b[16:], "makes no sense"),
        (lambda b: b[:16] + b"object\0\0" + b[24:], "makes no sense"),
        (lambda b: b[:16] + b"\xff" * 8 + b[24:], "makes no sense"),
        (lambda b: b[:24] + struct.pack("<Q", 0) + b[32:], "makes no sense"),
        (lambda b: b[:24] + struct.pack("<Q", 1 << 60) + b[32:], "damaged"),
        (lambda b: b[:-1], "damaged"),
        (lambda b: b + b"\0", "damaged"),
    ],
)
def test_what_is_no_chunk_is_refused(tmp_path: Path, change: object, sentence: str) -> None:
    path = tmp_path / "chunk"
    path.write_bytes(change(chunks.write(np.zeros((3, 2), np.float32))))  # type: ignore[operator]
    with pytest.raises(StorageError, match=sentence) as caught:
        chunks.open(path)
    assert str(path) in str(caught.value)


def test_a_missing_chunk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not here"):
        chunks.open(tmp_path / "gone")


def test_what_cannot_be_stored() -> None:
    with pytest.raises(DataError, match="dtype object"):
        chunks.write(np.array([None]))
    with pytest.raises(DataError, match="dtype complex64"):
        chunks.write(np.zeros(3, np.complex64))
    with pytest.raises(DataError, match="0 dimensions"):
        chunks.write(np.array(1.0))
    with pytest.raises(DataError, match="every extent must be positive"):
        chunks.write(np.zeros((3, 0)))


def test_chunk_sizes() -> None:
    assert chunks.rows_per_chunk("uint8", (1, 28, 28)) == (4 << 20) // 784
    assert chunks.rows_per_chunk("float32", (3, 800, 600)) == 1
    with pytest.raises(DataError, match="the limit is 8388608"):
        chunks.rows_per_chunk("float32", (3, 1024, 1024))
