"""The arena: memory that a daemon and its executor share, so that tensors pass between them without a copy.

On Linux it is a memfd, elsewhere an unlinked temporary file; either way an anonymous file that goes when both processes
are gone. The daemon makes it and hands its descriptor down. What lies where is `train.frames`.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import StorageError


class Arena:
    """A shared mapping. view: its bytes, writable; offsets are `train.frames`'s. Close it when no view is used any more."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        self._map = mmap.mmap(descriptor, max(size, 1))
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, size: int) -> Arena:
        """A new arena of `size` bytes, all zero. Raises StorageError where the system has no room for it."""
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, max(size, 1))
            return cls(descriptor, size)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise StorageError(
                f"the system gives no shared memory of {size:,} bytes ({error}); use more nodes or a smaller batch"
            ) from error

    @classmethod
    def inherit(cls, descriptor: int) -> Arena:
        """The arena behind a descriptor that this process got from its parent."""
        return cls(descriptor, os.fstat(descriptor).st_size)

    def array(self, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array over the arena's bytes from `offset` on, C-contiguous."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, np.dtype(dtype), count, offset).reshape(shape)

    def close(self) -> None:
        """Give the descriptor and, unless arrays or views still use it, the mapping back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            pass  # the last view of it, when it goes, gives the memory back


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("p2pnn-arena", os.MFD_CLOEXEC)
    descriptor, path = tempfile.mkstemp(prefix="p2pnn-arena-")
    os.unlink(path)
    return descriptor
