"""A local mesh: N daemons of our own on this machine that live as long as the command.

Each is the real daemon, started as `p2pnn node start` in a temporary folder, on a free loopback port, with a cluster
secret that nobody else knows (in the environment, where other users cannot read it). So what runs here is what runs on a
real mesh. They hold the reading end of a pipe whose writing end only this process has: however this process ends, also by
SIGKILL, the system closes it and they end too. A folder that such an end left behind is swept away by the next local mesh.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from p2pnn.cli.http import Daemon
from p2pnn.config import KEYS, Places
from p2pnn.errors import P2pnnError, TimedOutError, UsageError

NODES_MAX: Final = 26
"""One letter each; far above the cores of any machine on which a local mesh makes sense."""

READY_DEADLINE_S: Final = 30.0
"""For one daemon to be ready and for all to see each other. A ready daemon takes 1 s; a loaded machine many times that."""

STOP_DEADLINE_S: Final = 5.0
_PREFIX: Final = "p2pnn-local-"


@dataclass(slots=True)
class _Node:
    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    ready: int
    address: str = ""
    socket: Path = Path()


class LocalMesh:
    """`with LocalMesh(3) as mesh:` gives a mesh whose nodes a, b, c see each other. `daemon` is a's.

    Raises UsageError for a count that makes no sense, P2pnnError with the daemon's own words where one fails to start,
    TimedOutError where they do not find each other in time.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= NODES_MAX:
            raise UsageError(f"--local {count}: a local mesh has 1 to {NODES_MAX} nodes")
        self.count = count
        self.ready_s = 0.0
        self._nodes: list[_Node] = []
        self._killed: set[str] = set()
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._lifeline: tuple[int, int] | None = None
        self._daemon: Daemon | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None, "the mesh has not been started"
        return self._daemon

    def __enter__(self) -> LocalMesh:
        began = time.monotonic()
        deadline = began + READY_DEADLINE_S
        self._catch_signals()
        try:
            self._make_folder()
            environ = self._environ()
            first, *others = names(self.count)
            joined = self._start(first, [], environ)
            self._await_ready(joined, deadline)
            for name in others:
                self._start(name, ["--join", joined.address], environ)
            for node in self._nodes[1:]:
                self._await_ready(node, deadline)
            self._daemon = Daemon(joined.socket)
            self._await_peers(deadline)
        except BaseException:
            self.close()
            raise
        self.ready_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the daemons and remove their folders."""
        if self._daemon is not None:
            self._daemon.close()
        if self._lifeline is not None:
            for descriptor in self._lifeline:
                os.close(descriptor)
            self._lifeline = None
        deadline = time.monotonic() + STOP_DEADLINE_S
        for node in self._nodes:
            with contextlib.suppress(OSError):
                os.close(node.ready)
            try:
                node.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
        self._nodes.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def kill(self, name: str) -> None:
        """End a node as a crash would: SIGKILL, without a word. It is not counted as fallen. KeyError for a name that is none."""
        node = {node.name: node for node in self._nodes}[name]
        self._killed.add(name)
        node.process.kill()
        node.process.wait()

    def fallen(self) -> str:
        """A sentence about the first daemon that ended by itself, or empty."""
        for node in self._nodes:
            if node.name in self._killed:
                continue
            status = node.process.poll()
            if status is not None and status < 0:
                return f"node {node.name} of the local mesh was ended by {signal.Signals(-status).name}"
            if status is not None:
                return f"node {node.name} of the local mesh ended with status {status}: {_last_words(node.folder)}"
        return ""

    def _catch_signals(self) -> None:
        """A polite end of this process, or of its terminal, shall leave no folder behind."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _end)

    def _make_folder(self) -> None:
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self._folder / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lifeline = os.pipe()

    def _environ(self) -> dict[str, str]:
        # The person's own node.toml and settings are about his daemon, not about these.
        settings = {f"P2PNN_{key.upper()}" for key in KEYS}
        environ = {key: value for key, value in os.environ.items() if key not in settings}
        return environ | {"P2PNN_CONFIG": os.devnull, "P2PNN_CLUSTER": secrets.token_hex(16)}

    def _start(self, name: str, more: list[str], environ: dict[str, str]) -> _Node:
        assert self._folder is not None
        assert self._lifeline is not None
        folder = self._folder / name
        folder.mkdir()
        ready, announce = os.pipe()
        profile = Places.of().profile_cache
        with contextlib.suppress(OSError):
            profile.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["--plain", "--name", name, "--state-dir", str(folder), "--listen", "127.0.0.1:0"]
        arguments += ["--log-level", "warning"]
        arguments += ["--socket", str(folder / "p2pnn.sock"), "--profile-cache", str(profile)]
        arguments += ["--lifeline", str(self._lifeline[0]), "--ready-fd", str(announce), *more]
        try:
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "p2pnn", "node", "start", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environ,
                    pass_fds=(self._lifeline[0], announce),
                    start_new_session=True,  # Ctrl-C reaches this process alone, which then decides
                )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(announce)
        node = _Node(name, folder, process, ready)
        self._nodes.append(node)
        return node

    def _await_ready(self, node: _Node, deadline: float) -> None:
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([node.ready], [], [], left)[0]:
                raise TimedOutError(
                    f"node {node.name} of the local mesh was not ready in {READY_DEADLINE_S:.0f} s: {_last_words(node.folder)}"
                )
            piece = os.read(node.ready, 4096)
            if not piece:
                raise P2pnnError(f"node {node.name} of the local mesh did not start: {_last_words(node.folder)}")
            line += piece
        found: dict[str, Any] = json.loads(line)
        node.address, node.socket = str(found["address"]), Path(str(found["socket"]))

    def _await_peers(self, deadline: float) -> None:
        while True:
            peers = self.daemon.get("peers")["peers"]
            alive = [peer["name"] for peer in peers if peer["state"] in ("self", "alive")]
            if len(alive) >= self.count:
                return
            if fallen := self.fallen():
                raise P2pnnError(fallen)
            if time.monotonic() > deadline:
                missing = ", ".join(node.name for node in self._nodes if node.name not in alive)
                raise TimedOutError(
                    f"after {READY_DEADLINE_S:.0f} s the local mesh's node a does not see {missing}; is loopback blocked?"
                )
            time.sleep(0.01)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def names(count: int) -> tuple[str, ...]:
    """What the nodes of a local mesh are called: a, b, c, …"""
    return tuple("abcdefghijklmnopqrstuvwxyz"[:count])


def _sweep() -> None:
    """Remove the folders of local meshes whose command is gone: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        try:
            status = folder.lstat()
            if (
                status.st_uid != os.getuid() or time.time() - status.st_mtime < 60
            ):  # a new one may not hold its lock yet
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def _last_words(folder: Path) -> str:
    try:
        lines = [line for line in (folder / "log").read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return " | ".join(lines[-3:])[-600:] if lines else "it said nothing"
