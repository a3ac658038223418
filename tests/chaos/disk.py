"""A disk of its own for one node, small enough to be filled: a file system in memory, where this process may mount one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
_filler = "filler"
_own_mounts = False


def missing() -> str:
    """Why this process cannot have disks of its own; empty where it can.

    The first call gives this process a mount table of its own, so that all mounts are gone when it and its children are. It
    must come before the first process is started that shall see a disk.
    """
    global _own_mounts
    if _own_mounts:
        return ""
    if os.geteuid() != 0:
        return "only root may mount a small disk to fill"
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        return f"this process may not have mounts of its own: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    if done.returncode != 0:
        return f"mounts cannot be made private: {done.stderr.strip()}"
    _own_mounts = True
    return ""


class Disk:
    """`size` bytes at `folder`. Raises OSError where it cannot be mounted (see `missing`)."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        options = f"size={size},mode=700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "p2pnn-chaos", str(folder)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise OSError(f"no disk can be mounted at {folder}: {done.stderr.strip()}")

    def fill(self) -> int:
        """Take all the room that is left; how many bytes. Raises OSError where nobody has written here: it is not in use."""
        if not any(self.folder.iterdir()):
            raise OSError(f"the disk at {self.folder} is empty: its node was started where it cannot see it")
        size = 0
        with contextlib.suppress(OSError), (self.folder / _filler).open("ab", 0) as file:
            for piece in (1 << 16, 512, 1):
                with contextlib.suppress(OSError):
                    while True:
                        size += file.write(b"\0" * piece)
        return size

    def free(self) -> None:
        (self.folder / _filler).unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)
