"""A mesh of nodes with network namespaces of their own, whose links pass no more than they are told to.

    with ShapedMesh(3, bits_per_s=100_000_000) as mesh:

Every node has one link, shaped in both directions; they meet in a bridge that passes everything. They are secured, as nodes on
several machines are. Needs root on Linux, and `ip`, `tc` and `nsenter`; `missing` says what is not there. Nothing is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from benchmarks._worker import ROOT
from p2pnn.cli.http import Daemon
from p2pnn.cli.local import names
from p2pnn.config import KEYS, Places
from p2pnn.errors import P2pnnError, TimedOutError
from tests.chaos import cables

DEADLINE_S = 60.0
STOP_DEADLINE_S = 10.0


def missing() -> str:
    """Why links cannot be shaped here; empty where they can."""
    if reason := cables.missing():
        return reason
    if shutil.which("tc") is None:
        return "the program tc is not installed (package iproute2)"
    try:
        with contextlib.closing(cables.Cables()) as room:
            room.lay("a")
            room.shape("a", 1_000_000)
    except OSError as error:
        return f"no link can be shaped: {error}"
    return ""


class ShapedMesh:
    """wait_s: what a training step takes in place of its computing (`_waiting`); 0 computes.

    Raises P2pnnError with the daemon's own words where one does not start.
    """

    def __init__(self, count: int, bits_per_s: int, wait_s: float = 0.0) -> None:
        self._names, self._bits_per_s, self._wait_s = names(count), bits_per_s, wait_s
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()
        self._daemon: Daemon | None = None

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None, "the mesh has not been started"
        return self._daemon

    def __enter__(self) -> ShapedMesh:
        deadline = time.monotonic() + DEADLINE_S
        try:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pnn-shaped-")))
            self._cables = self._stack.enter_context(contextlib.closing(cables.Cables()))
            reading, self._lifeline = os.pipe()
            self._stack.callback(self._end)
            with os.fdopen(reading):
                first = ""
                for name in self._names:
                    address = self._start(name, first, reading, deadline)
                    first = first or address
            self._await_peers(deadline)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def fallen(self) -> str:
        """A sentence about the first daemon that ended by itself, or empty."""
        for name, process in self._nodes.items():
            if process.poll() is not None:
                return f"node {name} of the shaped mesh ended with status {process.poll()}: {self._last_words(name)}"
        return ""

    def _start(self, name: str, first: str, lifeline: int, deadline: float) -> str:
        """Start a node; its address."""
        cable, host = self._cables.lay(name)
        self._cables.shape(name, self._bits_per_s)
        folder = self._folder / name
        folder.mkdir()
        ready, announce = os.pipe()
        profile = Places.of().profile_cache
        with contextlib.suppress(OSError):
            profile.parent.mkdir(parents=True, exist_ok=True)
        words = ["--name", name, "--state-dir", str(folder), "--socket", str(folder / "p2pnn.sock")]
        words += ["--listen", f"{host}:0", "--log-level", "warning", "--profile-cache", str(profile)]
        words += ["--lifeline", str(lifeline), "--ready-fd", str(announce), *(["--join", first] if first else [])]
        command = [sys.executable, "-m", "benchmarks._node", str(cable), str(self._wait_s), "node", "start", *words]
        with os.fdopen(ready, "rb", 0) as told:
            with os.fdopen(announce), (folder / "log").open("wb") as log:
                self._nodes[name] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environ(first),
                    pass_fds=(cable, lifeline, announce),
                    start_new_session=True,
                )
            if not select.select([told], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimedOutError(
                    f"node {name} of the shaped mesh was not ready in {DEADLINE_S:.0f} s: {self._last_words(name)}"
                )
            line = told.readline()
        if not line:
            raise P2pnnError(f"node {name} of the shaped mesh did not start: {self._last_words(name)}")
        if self._daemon is None:
            self._daemon = Daemon(folder / "p2pnn.sock")
        return str(json.loads(line)["address"])

    def _environ(self, first: str) -> dict[str, str]:
        settings = {f"P2PNN_{key.upper()}" for key in KEYS}
        environ = {key: value for key, value in os.environ.items() if key not in settings}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        token = {"P2PNN_TOKEN": str(self.daemon.post("tokens")["token"])} if first else {}
        return environ | {"P2PNN_CONFIG": os.devnull, "PYTHONPATH": path} | token

    def _await_peers(self, deadline: float) -> None:
        while True:
            alive = [peer for peer in self.daemon.get("peers")["peers"] if peer["state"] in ("self", "alive")]
            if len(alive) == len(self._names):
                return
            if reason := self.fallen():
                raise P2pnnError(reason)
            if time.monotonic() > deadline:
                raise TimedOutError(
                    f"after {DEADLINE_S:.0f} s only {len(alive)} of {len(self._names)} nodes of the shaped mesh are there"
                )
            time.sleep(0.02)

    def _end(self) -> None:
        """The daemons end with their lifeline."""
        if self._daemon is not None:
            self._daemon.close()
        os.close(self._lifeline)
        deadline = time.monotonic() + STOP_DEADLINE_S
        for process in self._nodes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _last_words(self, name: str) -> str:
        return " | ".join((self._folder / name / "log").read_text(errors="replace").splitlines()[-3:])[-600:]
