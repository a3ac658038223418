import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnn.data.blobs import BlobStore, blob_id
from p2pnn.errors import DataError, StorageError
from p2pnn.types import BlobId

ABSENT = BlobId("0" * 64)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_blob_is_named_by_its_hash_and_read_back(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(memoryview(b"hello, mesh"))
    assert blob == hashlib.sha256(b"hello, mesh").hexdigest() == blob_id(b"hello, mesh")
    assert store.path(blob) == tmp_path / blob[:2] / blob
    assert store.has(blob)
    assert store.size(blob) == 11
    assert store.read(blob, 7, 4) == b"mesh"
    assert store.put(b"hello, mesh") == blob
    assert files(tmp_path) == [store.path(blob)]


def test_list_is_sorted_and_sees_only_blobs(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    wanted = sorted((store.put(bytes([n]) * n), n) for n in range(1, 9))
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "notes.txt").write_text("not a blob")
    (tmp_path / "ab" / ("ab" + "0" * 62)).symlink_to("/etc/passwd")
    store.temporary().write_bytes(b"half")
    assert list(store.list()) == wanted


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "/" + "0" * 63]
)
def test_a_name_that_is_no_hash_is_refused(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    for act in (store.path, store.has, store.size, store.remove):
        with pytest.raises(DataError, match="not a blob's name"):
            act(BlobId(name))
    with pytest.raises(DataError):
        store.read(BlobId(name), 0, 1)
    with pytest.raises(DataError):
        store.writer(BlobId(name), 1)


def test_a_link_in_a_blobs_place_is_not_followed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    store.path(ABSENT).parent.mkdir()
    store.path(ABSENT).symlink_to(secret)
    assert not store.has(ABSENT)
    with pytest.raises(StorageError):
        store.read(ABSENT, 0, 6)


def test_what_is_not_there(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert not store.has(ABSENT)
    store.remove(ABSENT)
    with pytest.raises(StorageError, match="is not here"):
        store.size(ABSENT)
    with pytest.raises(StorageError, match="is not here"):
        store.read(ABSENT, 0, 1)
    blob = store.put(b"12345")
    with pytest.raises(StorageError, match="it ends at 5"):
        store.read(blob, 3, 3)
    store.remove(blob)
    assert not store.has(blob)


def test_pieces_arrive_in_any_order(tmp_path: Path) -> None:
    data = os.urandom(3000)
    store = BlobStore(tmp_path)
    writer = store.writer(blob_id(data), len(data))
    for start in (2000, 0, 1000):
        writer.write(start, memoryview(data)[start : start + 1000])
        assert not store.has(blob_id(data))
    writer.finish()
    writer.abort()
    assert store.read(blob_id(data), 0, 3000) == data


def test_wrong_bytes_are_dropped(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    writer = store.writer(blob_id(b"right"), 5)
    writer.write(0, b"wrong")
    with pytest.raises(StorageError, match="it was dropped"):
        writer.finish()
    assert files(tmp_path) == []


@pytest.mark.parametrize(("offset", "data"), [(0, b"123456"), (5, b"1"), (-1, b"1")])
def test_bytes_outside_of_a_blob_are_refused(tmp_path: Path, offset: int, data: bytes) -> None:
    with BlobStore(tmp_path).writer(blob_id(b"12345"), 5) as writer, pytest.raises(StorageError, match="do not fit"):
        writer.write(offset, data)
    assert files(tmp_path) == []


def test_adopt_takes_a_finished_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    temporary = store.temporary()
    temporary.write_bytes(b"parameters")
    blob = store.adopt(temporary)
    assert store.read(blob, 0, 10) == b"parameters"
    assert not temporary.exists()
    with pytest.raises(StorageError):
        store.adopt(temporary)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = BlobStore(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match=r"is full: no room for 5 bytes.*data rm") as caught:
            store.put(b"12345")
    assert str(tmp_path) in str(caught.value)
    assert files(tmp_path) == []
    store.put(b"12345")


def test_opening_sweeps_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    mine = store.temporary()
    mine.write_bytes(b"being written")
    program = "import sys; from pathlib import Path; from p2pnn.data.blobs import BlobStore; "
    program += "p = BlobStore(Path(sys.argv[1])).temporary(); p.write_bytes(b'half'); print(p)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    theirs = Path(done.stdout.strip())
    assert theirs.exists()
    same_number = mine.with_name(f"{os.getpid()}-{'0' * 16}-0")
    same_number.write_bytes(b"of an earlier process")
    BlobStore(tmp_path)
    assert mine.exists()
    assert not theirs.exists()
    assert not same_number.exists()


def test_a_quota_counts_what_comes_goes_and_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path, quota_bytes=100)
    lists = 0
    listing = store.list

    def counted() -> Iterator[tuple[BlobId, int]]:
        nonlocal lists
        lists += 1
        return listing()

    monkeypatch.setattr(store, "list", counted)
    first, second = bytes(60), bytes(41)
    with store.writer(blob_id(first), 60) as writer:
        with pytest.raises(StorageError, match=r"holds 60 of 100 bytes.*41 more does not fit"):
            store.writer(blob_id(second), 41)
        writer.write(0, first)
        writer.finish()
    with pytest.raises(StorageError, match="holds 60 of 100"):
        store.writer(blob_id(second), 41)
    store.remove(blob_id(first))
    for _ in range(3):
        store.writer(blob_id(second), 41).abort()
    with pytest.raises(StorageError, match="holds 0 of 100"):
        store.writer(blob_id(first), 101)
    assert lists == 1
    BlobStore(tmp_path).put(bytes(90))  # as an executor does
    monkeypatch.setattr(store, "_until_recount", 0)
    with pytest.raises(StorageError, match="holds 90 of 100"):
        store.writer(blob_id(second), 41)
    assert 0 < store.room() < 1 << 60
