"""The blob store: bytes that are named by what they are.

A blob is a file whose name is the SHA-256 of its content: `<root>/ab/abcdef…`. So a name can be asked of any peer, what
comes back is checked without trust, and writing a blob twice is writing it once. Data chunks, job specs and checkpoint
parts are blobs; this module is the only code that touches their files.

A blob is whole or absent. Bytes go to a temporary file in the same file system; the file is synced, hashed, renamed to
its name, and the folder is synced. Where any of that fails the temporary file is dropped and what was there before stays
(after a failed fsync nothing is tried again: the kernel has marked the pages clean).

Temporary names carry the process that made them, so that opening the store can sweep what a dead process left, and
nothing of a living one: the daemon and its executors share one store.

A quota bounds what `writer` takes: what people and peers send. It counts along, and counts the files again now and then, because
an executor writes its checkpoints by a store of its own; those a quota never refuses.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from p2pnn.errors import DataError, StorageError
from p2pnn.types import BlobId

HASH_READ_BYTES: Final = 1 << 20
"""Files are hashed in pieces of this size, so that a large blob never lies in memory."""

RECOUNT_BLOBS: Final = 256
"""With a quota, the files are listed again after this many new blobs; in between, the count runs along."""

_NAME: Final = re.compile(r"[0-9a-f]{64}")
_FOLDER: Final = re.compile(r"[0-9a-f]{2}")
_TEMPORARY: Final = re.compile(r"(\d+)-([0-9a-f]{16})-\d+")
_TOKEN: Final = secrets.token_hex(8)
_NUMBERS: Final = itertools.count()


def blob_id(data: bytes | bytearray | memoryview) -> BlobId:
    """The name of these bytes: their SHA-256 in lower-case hexadecimal digits."""
    return BlobId(hashlib.sha256(data).hexdigest())


class BlobStore:
    """The blobs below one folder. Opening it makes the folder and removes temporary files of dead processes.

    quota_bytes: the most that `writer` may fill the store to; 0 for no quota.

    Every method that takes a blob id raises DataError for text that is not 64 lower-case hexadecimal digits, and
    StorageError where the disk fails.
    """

    def __init__(self, root: Path, quota_bytes: int = 0) -> None:
        self.root = root
        self._quota = quota_bytes
        self._lock = threading.Lock()
        self._held = 0
        self._coming = 0
        self._until_recount = 0
        self._temporaries = root / "temporary"
        try:
            self._temporaries.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self._temporaries) from error
        self._sweep()

    def path(self, blob: BlobId) -> Path:
        """Where the blob lies, or would lie."""
        if not isinstance(blob, str) or not _NAME.fullmatch(blob):
            raise DataError(f"{blob!r} is not a blob's name, which is 64 lower-case hexadecimal digits")
        return self.root / blob[:2] / blob

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is here, whole."""
        path = self.path(blob)
        return path.is_file() and not path.is_symlink()

    def size(self, blob: BlobId) -> int:
        """Bytes of the blob. Raises StorageError where it is not here."""
        path = self.path(blob)
        try:
            return path.stat(follow_symlinks=False).st_size
        except OSError as error:
            raise storage_error(error, path) from error

    def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Write these bytes durably and return their name. Raises StorageError; nothing is left of a failed write."""
        blob = blob_id(data)
        if self.has(blob):
            return blob
        size = memoryview(data).nbytes
        with BlobWriter(self, blob, size) as writer:
            writer.write(0, data)
            writer._publish()
        self._count(size)
        return blob

    def adopt(self, temporary: Path) -> BlobId:
        """Hash a finished file (made at a name from `temporary()`), sync it and rename it into place."""
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                blob = _hash(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, temporary) from error
        self._rename(temporary, blob)
        return blob

    def read(self, blob: BlobId, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the blob. Raises StorageError where it is absent or ends before."""
        path = self.path(blob)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, path) from error
        if len(data) != length:
            raise StorageError(f"blob {path} has no bytes {offset} to {offset + length}; it ends at {self.size(blob)}")
        return data

    def writer(self, blob: BlobId, size: int) -> BlobWriter:
        """Room for a blob whose name and size are known and whose bytes arrive in pieces.

        Space for all of it is taken at once, so that a full disk shows here. The caller must `finish()` or `abort()`.
        Raises StorageError where it would exceed the quota.
        """
        if self.has(blob):
            return BlobWriter(self, blob, size)
        self._take(blob, size)
        try:
            return BlobWriter(self, blob, size, counted=True)
        except BaseException:
            self._came(size, False)
            raise

    def room(self) -> int:
        """Bytes that a blob of unknown size may take: half of what the disk has free, so that none can fill it."""
        try:
            free = os.statvfs(self.root)
        except OSError as error:
            raise storage_error(error, self.root) from error
        return free.f_bavail * free.f_frsize // 2

    def remove(self, blob: BlobId) -> None:
        """Forget the blob; it is no error if it is not here."""
        path = self.path(blob)
        try:
            size = path.stat(follow_symlinks=False).st_size
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, path) from error
        self._count(-size)

    def list(self) -> Iterator[tuple[BlobId, int]]:
        """Every blob with its size in bytes, in the order of their names."""
        try:
            folders = sorted(entry.name for entry in os.scandir(self.root) if _FOLDER.fullmatch(entry.name))
            for folder in folders:
                entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
                for entry in entries:
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # removed since the folder was read
                            yield BlobId(entry.name), entry.stat(follow_symlinks=False).st_size
        except OSError as error:
            raise storage_error(error, self.root) from error

    def temporary(self) -> Path:
        """A fresh name in the same file system, for a file that `adopt` takes over when it is complete."""
        return self._temporaries / f"{os.getpid()}-{_TOKEN}-{next(_NUMBERS)}"

    def _take(self, blob: BlobId, size: int) -> None:
        """Count a blob before it is written. Raises StorageError where the quota does not allow it."""
        if not self._quota:
            return
        with self._lock:
            if self._until_recount == 0:
                self._held = sum(nbytes for _, nbytes in self.list())
                self._until_recount = RECOUNT_BLOBS
            used = self._held + self._coming
            if used + size > self._quota:
                raise StorageError(
                    f"the chunk store {self.root} holds {used:,} of {self._quota:,} bytes, so blob {blob[:12]}… with "
                    f"{size:,} more does not fit; remove data with `p2pnn data rm`, or raise the quota"
                )
            self._coming += size
            self._until_recount -= 1

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._held = max(0, self._held + nbytes)

    def _came(self, nbytes: int, whole: bool) -> None:
        """What `_take` counted is here now, or will not come."""
        if self._quota:
            with self._lock:
                self._coming -= nbytes
                self._held += nbytes if whole else 0

    def _rename(self, temporary: Path, blob: BlobId) -> None:
        target = self.path(blob)
        try:
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                _sync_folder(self.root)
            temporary.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise storage_error(error, target) from error

    def _sweep(self) -> None:
        for entry in os.scandir(self._temporaries):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and not _made_by_a_living_process(int(match[1]), match[2]):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


class BlobWriter:
    """A blob being written, in pieces, in any order. As a context manager it aborts unless `finish()` succeeded."""

    def __init__(self, store: BlobStore, blob: BlobId, size: int, counted: bool = False) -> None:
        self.blob = blob
        self.size = size
        self._store = store
        self._counted = False
        self._path = store.temporary()
        self._descriptor = -1
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            _reserve(self._descriptor, size)
        except OSError as error:
            self.abort()
            raise storage_error(error, store.path(blob), size) from error
        self._counted = counted

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`. Raises StorageError beyond the blob's size or where the disk fails."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if offset < 0 or offset + len(view) > self.size:
            raise StorageError(
                f"blob {self.blob[:12]}… has {self.size} bytes; {len(view)} more at {offset} do not fit into it"
            )
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
        except OSError as error:
            self.abort()
            raise storage_error(error, self._store.path(self.blob), self.size) from error

    def finish(self) -> None:
        """Check the hash and make the blob visible. Raises StorageError, and removes the file, where it differs."""
        try:
            found = _hash(self._descriptor)
        except OSError as error:
            self.abort()
            raise storage_error(error, self._store.path(self.blob), self.size) from error
        if found != self.blob:
            self.abort()
            raise StorageError(f"what arrived as blob {self.blob[:12]}… has the hash {found[:12]}…; it was dropped")
        self._publish()

    def abort(self) -> None:
        """Drop what was written; harmless after `finish()`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._came(False)
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _publish(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.abort()
            raise storage_error(error, self._store.path(self.blob), self.size) from error
        os.close(self._descriptor)
        self._descriptor = -1
        try:
            self._store._rename(self._path, self.blob)
        except StorageError:
            self._came(False)
            raise
        self._came(True)

    def _came(self, whole: bool) -> None:
        if self._counted:
            self._counted = False
            self._store._came(self.size, whole)


def storage_error(error: OSError, path: Path, size: int | None = None) -> StorageError:
    """The sentence for an operating system's error at `path`, where `size` bytes were to be written."""
    wanted = f" for {size} bytes" if size is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk of {path} is full: no room{wanted}; free some space, or remove data sets with `p2pnn data rm`"
        )
    if error.errno == errno.EFBIG:
        return StorageError(f"{path} may not grow{wanted}: a file size limit of the system; raise it (ulimit -f)")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path} cannot be written ({error.strerror}); check the folder's owner and mode")
    if error.errno == errno.ENOENT:
        return StorageError(f"{path} is not here; it was removed, or never arrived")
    return StorageError(f"{path}: {error.strerror or error}; check the disk")


def _reserve(descriptor: int, size: int) -> None:
    if size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS has no posix_fallocate
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)


def _hash(descriptor: int) -> BlobId:
    digest = hashlib.sha256()
    offset = 0
    while piece := os.pread(descriptor, HASH_READ_BYTES, offset):
        digest.update(piece)
        offset += len(piece)
    return BlobId(digest.hexdigest())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made_by_a_living_process(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token == _TOKEN  # in a container every daemon may have the same number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
