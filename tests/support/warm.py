"""Processes for tests that do not pay for Python's start: forked from one process that has imported what they need.

`start(["python", "-m", "p2pnn.executor", ...], ...)` takes what `subprocess.Popen` takes and gives what of it is used here. The
new process has the environment, the descriptors and the arguments that it was given, and runs the module as `__main__`; only the
half second of imports is missing. A daemon that was started so starts its executors so, too. A process whose own start is the
test's subject is started by `subprocess`, as for a person.

This module can stand where a module of the package says `subprocess`. One warm process serves a session of tests, and ends when
that does. What differs from a child: the parent is the warm process, and the status comes over a socket.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired
from typing import Any

IMPORTED = (
    "p2pnn.api.serve",
    "p2pnn.cli",
    "p2pnn.cli.node",
    "p2pnn.executor.loop",
    "p2pnn.executor.runner",
    "uvloop",
)
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""BLAS reads them when it is loaded, so a process that wants more threads is started afresh."""

ROOT = Path(__file__).resolve().parent.parent.parent
REQUEST_BYTES_MAX = 1 << 18
DESCRIPTORS_MAX = 32
WAITING_MAX = 16
ASIDE = 512
"""Descriptors from here on hold what was received while those that were asked for are put in their places."""

_PYTHON = sys.executable  # another one is started as it is: a test has put it in the place of this one
_cold = subprocess.Popen  # itself, also where a test has put `start` in its place
_server: subprocess.Popen[bytes] | None = None
_address = ""
_profile = b""


class Started(subprocess.Popen[bytes]):
    """A process of the warm one's."""

    def __init__(self, args: Sequence[str], connection: socket.socket) -> None:
        self.args = list(args)
        self.pid = int(connection.recv(16))
        self.returncode: int | None = None  # type: ignore[assignment]
        self.stdin = self.stdout = self.stderr = None
        self._connection = connection
        self._reading = threading.Lock()

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        found = self._look(timeout)
        if found is None:
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        return found

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _look(self, timeout: float | None) -> int | None:
        with contextlib.suppress(ValueError):  # another thread has read it meanwhile
            if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
                return None
        with self._reading:
            if self.returncode is None:
                self.returncode = int(self._connection.recv(16) or -signal.SIGKILL)
                self._connection.close()
        return self.returncode

    def __del__(self, *_: Any) -> None:
        self._connection.close()


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Iterable[int] = (),
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    start_new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `PYTHON -m MODULE ...` as `subprocess.Popen` would. Streams: None, DEVNULL, a number or a file."""
    environ = dict(os.environ if env is None else env)
    if command[:2] != [_PYTHON, "-m"] or any(environ.get(name, "1") != "1" for name in THREADS):
        return _cold(command, env=env, pass_fds=pass_fds, stdin=stdin, stdout=stdout, stderr=stderr,
                     start_new_session=start_new_session)  # fmt: skip
    request = json.dumps([list(command[2:]), environ, os.getcwd(), [0, 1, 2, *pass_fds], start_new_session])
    connection = _connect()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        streams = [_descriptor(stream, own, null) for own, stream in enumerate((stdin, stdout, stderr))]
        socket.send_fds(connection, [request.encode()], [*streams, *pass_fds])
    finally:
        os.close(null)
    return Started(command, connection)


Popen = start


@contextlib.contextmanager
def measured(profile: Path) -> Iterator[None]:
    """The machine's measured speed lies in this file where one of the session's tests has measured it before."""
    global _profile
    if _profile:
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.write_bytes(_profile)
    yield
    with contextlib.suppress(FileNotFoundError):
        _profile = profile.read_bytes()


def close() -> None:
    """End the warm process, if there is one."""
    global _server
    if _server is not None:
        assert _server.stdin is not None
        _server.stdin.close()
        _server.wait(10)
        shutil.rmtree(os.path.dirname(_address), ignore_errors=True)
    _server = None


def _descriptor(stream: Any, own: int, null: int) -> int:
    if stream is None:
        return own
    if stream == DEVNULL:
        return null
    return stream if isinstance(stream, int) else int(stream.fileno())


def _connect() -> socket.socket:
    """A connection to the warm process, which is started where there is none. In one of its own there always is."""
    global _server, _address
    if not _address:
        _address = os.path.join(tempfile.mkdtemp(prefix="p2pnn-warm-"), "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            listener.bind(_address)
            listener.listen(WAITING_MAX)
            _server = _cold(
                [sys.executable, "-m", __name__, str(listener.fileno()), _address],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                cwd=ROOT,  # where this module is found; a test may have gone elsewhere
                env={**os.environ, **THREADS},
            )
        atexit.register(close)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_address)
    return connection


# --- the warm process


def serve(listener: socket.socket) -> list[str] | None:
    """Fork for each request until the input ends, then None. In a new process: the module to run, and its arguments."""
    turned, turn = os.pipe()
    os.set_blocking(turn, False)
    signal.set_wakeup_fd(turn)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for those who use it
    waiting: dict[int, socket.socket] = {}  # process → where its status is told
    while True:
        ready, _, _ = select.select([0, listener, turned], [], [])
        if 0 in ready:
            return None
        if turned in ready:
            os.read(turned, 4096)
            _reap(waiting)
        if listener in ready:
            connection, _ = listener.accept()
            data, received, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, DESCRIPTORS_MAX)
            if not data:
                connection.close()
                continue
            number = os.fork()
            if number == 0:
                for other in (listener, connection, *waiting.values()):
                    other.detach()
                return _become(json.loads(data), received)
            for descriptor in received:
                os.close(descriptor)
            waiting[number] = connection
            connection.send(str(number).encode())


def _reap(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        number, ended = os.waitpid(-1, os.WNOHANG)
        if number == 0:
            return
        with waiting.pop(number) as connection, contextlib.suppress(OSError):  # whoever started it may be gone
            connection.send(str(os.waitstatus_to_exitcode(ended)).encode())


def _become(request: tuple[list[str], dict[str, str], str, list[int], bool], received: list[int]) -> list[str]:
    """Have the descriptors, signals, environment and folder that were asked for, and nothing else."""
    arguments, environ, folder, numbers, new_session = request
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ASIDE) for descriptor in received]
    os.closerange(0, ASIDE)
    for descriptor, number in zip(aside, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    if new_session:
        os.setsid()
    return arguments


def _parse_something() -> None:
    """The command line's parser imports and builds much when it is first used: more than half of a daemon's start.

    What is parsed is refused, since there is no such level.
    """
    from p2pnn.cli import main

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        main(["node", "start", "--log-level", "none of them"])


def main() -> None:
    from p2pnn.executor import process
    from tests.support import warm

    for name in IMPORTED:
        __import__(name)
    _parse_something()
    warm._address = sys.argv[2]
    process.subprocess = warm  # type: ignore[assignment]
    gc.collect()
    gc.freeze()
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        sys.argv = wanted
        runpy.run_module(wanted[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
