"""The daemon's side of an executor process: start it, end it, and say why it ended. No asyncio here.

An executor gets three descriptors: its command socket, the arena, and the *lifeline*, the reading end of a pipe whose
writing end only the daemon holds. When the daemon is gone, however it went, the pipe ends and so does the executor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from p2pnn.errors import StorageError
from p2pnn.executor.arena import Arena

NICE: Final = 5
"""How much an executor steps behind: the person at the machine, and the daemon, come first."""

SECRET_VARIABLES: Final = ("P2PNN_TOKEN", "CREDENTIALS_DIRECTORY")
"""A join token, and where one lies: nothing that an executor needs."""

PROGRAM = ["-m", "p2pnn.executor"]
"""What of Python's arguments says that a process is an executor; measurements put one of their own in its place."""

THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(slots=True)
class Spawned:
    """A running executor. socket: the daemon's end, for the caller to read and write; lifeline: the pipe's writing end."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    arena: Arena
    lifeline: int

    def kill(self) -> None:
        """End it at once, wait until it is gone, and give everything back; harmless when that is done."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.reap()

    def reap(self) -> str:
        """Wait until the process is gone, give everything back, and return why it ended (see `exit_reason`)."""
        status = self.process.wait()
        lifeline, self.lifeline = self.lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)
        self.socket.close()
        self.arena.close()
        return exit_reason(status)


def spawn(arena_bytes: int, threads: int = 1) -> Spawned:
    """Start an executor with an arena of `arena_bytes` and `threads` BLAS threads.

    Raises StorageError where the system gives no memory, process or descriptor.
    """
    arena = Arena.create(arena_bytes)
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    inherited = (theirs.fileno(), arena.descriptor, reading)
    command = [sys.executable, *PROGRAM]
    for name, descriptor in zip(("--socket", "--arena", "--lifeline"), inherited, strict=True):
        command += [name, str(descriptor)]
    try:
        process = subprocess.Popen(
            command, pass_fds=inherited, env=environment(threads), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
    except OSError as error:
        ours.close()
        os.close(writing)
        arena.close()
        raise StorageError(f"the system starts no compute process: {error.strerror or error}") from error
    finally:
        theirs.close()
        os.close(reading)
    return Spawned(process, ours, arena, writing)


def environment(threads: int) -> dict[str, str]:
    """The environment of an executor: this process's without its secrets, and with the number of BLAS threads."""
    inherited = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    return {**inherited, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONUNBUFFERED": "1"}


def exit_reason(returncode: int) -> str:
    """Why a process ended, for a person: `its compute process was killed by signal 9 (…)`."""
    if returncode >= 0:
        return f"its compute process ended with exit status {returncode}"
    number = -returncode
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    hint = "; the system kills with it what takes too much memory" if number == signal.SIGKILL else ""
    return f"its compute process was killed by signal {number} ({name}{hint})"
