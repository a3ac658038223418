"""A local mesh: real daemons that see each other, and nothing left of them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import local
from p2pnn.cli.local import LocalMesh
from p2pnn.errors import P2pnnError, TimedOutError, UsageError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local meshes of other processes of this machine do not count."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folders(temporary: Path) -> list[Path]:
    return list(temporary.glob("p2pnn-local-*"))


def test_nodes_see_each_other_and_leave_nothing(temporary: Path) -> None:
    with LocalMesh(2) as mesh:
        peers = mesh.daemon.get("peers")["peers"]
        assert {(peer["name"], peer["state"]) for peer in peers} == {("a", "self"), ("b", "alive")}
        assert mesh.fallen() == ""
        assert 0 < mesh.ready_s < local.READY_DEADLINE_S
        processes = [node.process for node in mesh._nodes]
        assert len(folders(temporary)) == 1
    assert [process.returncode for process in processes] == [0, 0]
    assert folders(temporary) == []


@pytest.mark.usefixtures("warm_processes")
def test_a_persons_settings_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PNN_JOIN", "127.0.0.1:1")
    monkeypatch.setenv("P2PNN_CLUSTER", "mine")
    with LocalMesh(1) as mesh:
        assert mesh.daemon.get("node")["cluster"] not in ("mine", "p2pnn")
        assert [peer["name"] for peer in mesh.daemon.get("peers")["peers"]] == ["a"]


@pytest.mark.usefixtures("warm_processes")
def test_a_node_that_is_killed_is_named() -> None:
    with LocalMesh(2) as mesh:
        process = mesh._nodes[1].process
        process.kill()
        process.wait()
        assert mesh.fallen() == "node b of the local mesh was ended by SIGKILL"


@pytest.mark.parametrize("count", [0, -1, 27])
def test_counts_that_make_no_sense(count: int) -> None:
    with pytest.raises(UsageError, match="a local mesh has 1 to 26 nodes"):
        LocalMesh(count)


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Daemons are replaced by a Python program; argv[-1] is the descriptor to say ready on."""
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        ready = command[command.index("--ready-fd") + 1]
        return real([sys.executable, "-c", program, ready], **options)

    monkeypatch.setattr(subprocess, "Popen", start)


def test_a_daemon_that_does_not_start_is_quoted(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    pretend(monkeypatch, "import sys; sys.exit('p2pnn: there is no room on the disk')")
    with pytest.raises(P2pnnError, match="node a of the local mesh did not start: p2pnn: there is no room on the disk"):
        LocalMesh(2).__enter__()
    assert folders(temporary) == []


def test_a_daemon_that_is_never_ready(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setattr(local, "READY_DEADLINE_S", 0.2)
    monkeypatch.setattr(local, "STOP_DEADLINE_S", 0.0)
    pretend(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(TimedOutError, match="node a of the local mesh was not ready in 0 s: it said nothing"):
        LocalMesh(1).__enter__()
    assert folders(temporary) == []


def test_what_a_killed_command_left_is_swept_away(temporary: Path) -> None:
    """Its folder is old and nobody holds its lock; a living one's lock is held, a new one is left alone."""
    for name, age in (("dead", 100), ("alive", 100), ("new", 0)):
        folder = temporary / f"p2pnn-local-{name}"
        folder.mkdir()
        (folder / "lock").touch()
        at = folder.stat().st_mtime - age
        os.utime(folder, (at, at))
    with (temporary / "p2pnn-local-alive" / "lock").open("wb") as lock:
        local.fcntl.flock(lock, local.fcntl.LOCK_EX)
        local._sweep()
    assert {folder.name for folder in folders(temporary)} == {"p2pnn-local-alive", "p2pnn-local-new"}


_COMMAND = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from p2pnn.cli.local import LocalMesh
with LocalMesh(1) as mesh:
    print(mesh._nodes[0].process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_daemons_end_however_the_command_ends(temporary: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        daemon = int(command.stdout.readline())
        watch = os.pidfd_open(daemon)
        command.send_signal(number)
        command.wait()
        ended, _, _ = local.select.select([watch], [], [], 10)
        os.close(watch)
    assert ended
    assert bool(folders(temporary)) == (number == signal.SIGKILL)
