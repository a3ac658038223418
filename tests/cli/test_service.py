"""`service install` and `remove`, carried out below a folder that stands for the machine, with a systemctl that only notes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import main, origin
from p2pnn.cli.installation import Layout, Origin
from tests.cli.fake import FakeDaemon, fake_daemon

NOTE = 'echo "$(basename "$0") $*" >> "$P2PNN_NOTES"\n'
SYSTEMCTL = """
wants="$P2PNN_ROOT/etc/systemd/system/multi-user.target.wants"
for unit; do :; done
case "$1" in
    enable) mkdir -p "$wants" "$P2PNN_ROOT/var/lib/private/p2pnn" && : > "$wants/$unit" ;;
    disable) rm "$wants/$unit" ;;
esac
"""
PYTHON = 'case "$3" in venv) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;; esac\n'


class Machine:
    """root: where its files lie; said: what a command printed."""

    def __init__(self, root: Path, notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._notes = notes
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        self._notes.write_text("")
        return main(["service", *words, "--root", str(self.root)]), *self._capsys.readouterr()

    def called(self, name: str) -> list[str]:
        """The calls of a command in the last run, without its name."""
        return [line.partition(" ")[2] for line in self._notes.read_text().splitlines() if line.startswith(name + " ")]

    def files(self) -> set[str]:
        found = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}
        return {path for path in found if "wants" not in path}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    tools, root, notes = tmp_path / "tools", tmp_path / "root", tmp_path / "notes"
    for folder in (tools, root):
        folder.mkdir()
    for name, more in (("systemctl", SYSTEMCTL), ("groupadd", ""), ("usermod", ""), ("python", PYTHON)):
        (tools / name).write_text("#!/bin/sh\nset -e\n" + NOTE + more)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("P2PNN_NOTES", str(notes))
    monkeypatch.setenv("P2PNN_ROOT", str(root))
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(origin, "find", lambda: Origin("/src", origin.units(), str(tools / "python")))
    return Machine(root, notes, capsys)


UNIT, TEMPLATE = "etc/systemd/system/p2pnn.service", "etc/systemd/system/p2pnn@.service"
PYTHON_FILE, CONFIGURATION = "opt/p2pnn/venv/bin/python", "etc/p2pnn/node.toml"


def test_from_nothing_to_a_service_and_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    status, out, _ = machine.run("install")
    assert status == 0
    assert machine.files() == {UNIT, PYTHON_FILE, CONFIGURATION}
    assert (machine.root / UNIT).read_bytes() == (origin.units() / "p2pnn.service").read_bytes()
    assert (machine.root / UNIT).stat().st_mode & 0o777 == 0o644
    assert machine.called("systemctl") == ["daemon-reload", "enable --now p2pnn.service"]
    assert machine.called("groupadd") == ["--system --force p2pnn"]
    assert machine.called("usermod") == ["--append --groups p2pnn ada"]
    assert "may use it     root and the group p2pnn; ada from the next login on" in out.splitlines()
    status, out, _ = machine.run("remove")
    assert status == 0
    assert machine.files() == {CONFIGURATION}
    assert out.splitlines()[-1].startswith(f"state stays in {machine.root}/var/lib/p2pnn, the configuration in ")
    assert (machine.root / "var/lib/private/p2pnn").is_dir()
    assert machine.run("remove", "--purge")[0] == 0
    assert machine.files() == set()
    assert not (machine.root / "var/lib/private/p2pnn").exists()
    assert not (machine.root / "etc/p2pnn").exists()


class Node:
    """The daemon of the service b. members: how many its cluster has; lines: what its drain tells; asked: how it was asked to."""

    def __init__(self, daemon: FakeDaemon, members: int, secured: bool) -> None:
        self.lines: list[Any] = [{"drained": True, "left": True}]
        self.daemon = daemon
        daemon["GET node"] = {"name": "attic", "node": "0" * 32, "secured": {"removed": ""} if secured else None}
        daemon["GET cluster"] = {"members": [{"name": f"n{number}"} for number in range(members)]}
        daemon["POST node/drain"] = lambda body: iter(self.lines)

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.daemon.bodies("POST node/drain")]


@pytest.fixture
def start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Node]]:
    """Install the service b, whose daemon is a scripted one."""
    assert machine.run("install", "--name", "b")[0] == 0
    with tempfile.TemporaryDirectory() as short, contextlib.ExitStack() as stack:
        monkeypatch.setattr(Layout, "socket", property(lambda _: Path(short) / "s"))

        def started(members: int = 3, secured: bool = True) -> Node:
            return Node(stack.enter_context(fake_daemon(Path(short) / "s")), members, secured)

        yield started


STOPPED = ["disable --now p2pnn@b.service", "daemon-reload"]


def test_a_service_leaves_its_cluster_before_it_is_removed(machine: Machine, start: Callable[..., Node]) -> None:
    node = start()
    node.lines.insert(0, {"waits_for": "job digits-1, until it runs elsewhere"})
    status, out, err = machine.run("remove", "--name", "b", "--dry-run")
    line = f"{machine.root}/opt/p2pnn/venv/bin/p2pnn node drain --leave --socket {node.daemon.path}"
    assert (status, err, node.asked, line in out.splitlines()) == (0, "", [], True)
    status, out, err = machine.run("remove", "--name", "b")
    assert (status, err) == (0, "waiting for job digits-1, until it runs elsewhere …\n")
    assert node.asked == [{"force": False, "leave": True}]
    assert machine.called("systemctl") == STOPPED
    said = out.splitlines()
    assert said.index("node attic has drained and left its cluster") < said.index(
        "systemctl disable --now p2pnn@b.service"
    )
    assert "cluster remove" not in out


def test_a_node_that_may_not_go_stays_a_service_unless_forced(machine: Machine, start: Callable[..., Node]) -> None:
    node = start()
    before = machine.files()
    why = "job digits-1 cannot run without it; with --force it is drained nevertheless"
    node.lines = [{"error": why, "exit": 4}]
    assert machine.run("remove", "--name", "b") == (
        4,
        "\n".join(machine_lines(machine, node)) + "\n",
        f"p2pnn: node attic works on, and nothing was removed: {why}\n",
    )
    assert (machine.called("systemctl"), machine.files()) == ([], before)
    node.lines = [{"drained": True, "left": False}]
    status, out, _ = machine.run("remove", "--name", "b", "--force")
    assert (status, machine.called("systemctl")) == (0, STOPPED)
    assert node.asked[-1] == {"force": True, "leave": True}
    assert "type on another member: p2pnn cluster remove attic" in out


def machine_lines(machine: Machine, node: Node) -> list[str]:
    program = f"{machine.root}/opt/p2pnn/venv/bin/p2pnn"
    return [
        "# other nodes take over its work, it leaves its cluster and stops",
        f"{program} node drain --leave --socket {node.daemon.path}",
    ]


def test_a_daemon_that_ends_while_it_drains_leaves_a_service_that_is_removed_by_the_same_command(
    machine: Machine, start: Callable[..., Node]
) -> None:
    node = start()
    node.lines = [{"waits_for": "job digits-1, until it runs elsewhere"}, None]
    status, _, err = machine.run("remove", "--name", "b")
    assert (status, machine.called("systemctl")) == (3, [])
    assert err.endswith(
        "node attic ended before it had drained; its log says why; nothing was removed, and the same command goes on\n"
    )
    node.daemon["GET node"] = None
    status, out, _ = machine.run("remove", "--name", "b")
    assert (status, machine.called("systemctl")) == (0, STOPPED)
    assert "type there: p2pnn cluster remove b" in out


def test_a_step_that_fails_after_it_has_left_says_so_and_is_done_by_the_same_command(
    machine: Machine, start: Callable[..., Node]
) -> None:
    node = start()
    tool = Path(os.environ["PATH"].partition(os.pathsep)[0]) / "systemctl"
    whole = tool.read_text()
    tool.write_text("#!/bin/sh\nexit 1\n")
    status, _, err = machine.run("remove", "--name", "b")
    assert (status, err) == (
        1,
        "p2pnn: node attic has drained and left its cluster; `systemctl disable --now p2pnn@b.service` ended with status 1"
        " and said why above; mend it and run the same again\n",
    )
    tool.write_text(whole)
    node.daemon["GET node"] = None
    assert machine.run("remove", "--name", "b")[0] == 0
    assert machine.called("systemctl") == STOPPED


@pytest.mark.parametrize(
    ("members", "secured", "said"),
    [(1, True, ""), (2, False, "list attic as away from now on"), (0, True, "")],
    ids=["the-only-member", "plain", "none-yet"],
)
def test_a_node_without_a_cluster_to_leave_only_drains(
    machine: Machine, start: Callable[..., Node], members: int, secured: bool, said: str
) -> None:
    node = start(members, secured)
    node.lines = [{"drained": True}]
    status, out, _ = machine.run("remove", "--name", "b")
    assert (status, node.asked, machine.called("systemctl")) == (0, [{"force": False}], STOPPED)
    assert "node attic has drained" in out.splitlines()
    assert "cluster remove" not in out
    assert said in out


def test_a_daemon_of_before_that_cannot_leave_stays_a_member_and_the_line_is_said(
    machine: Machine, start: Callable[..., Node]
) -> None:
    start().lines = [{"drained": True}]
    status, out, _ = machine.run("remove", "--name", "b")
    assert status == 0
    assert out.splitlines()[-2].endswith("type on another member: p2pnn cluster remove attic")


def test_a_daemon_that_cannot_tell_who_it_is_is_removed_by_force_alone(
    machine: Machine, start: Callable[..., Node]
) -> None:
    node = start()
    node.daemon["GET cluster"] = (503, {"error": "node attic is on its way to another cluster", "exit": 1})
    status, _, err = machine.run("remove", "--name", "b")
    assert (status, machine.called("systemctl")) == (1, [])
    assert "on its way to another cluster; nothing was removed, and with --force it is removed without leaving" in err
    status, out, _ = machine.run("remove", "--name", "b", "--force")
    assert (status, machine.called("systemctl")) == (0, STOPPED)
    assert "type on another member: p2pnn cluster remove b" in out


@pytest.mark.parametrize("named", [True, False])
def test_a_node_that_does_not_run_is_named_as_its_configuration_does(machine: Machine, named: bool) -> None:
    machine.run("install")
    name = "attic-pc" if named else os.uname().nodename.split(".")[0]
    if named:
        (machine.root / CONFIGURATION).write_text('name = "attic-pc"\n')
    for words in (["--dry-run"], []):
        status, out, _ = machine.run("remove", *words)
        assert status == 0
        assert (
            f"node {name} did not run, so it could not leave by itself; where `p2pnn cluster show` on another machine lists it"
            f" still, type there: p2pnn cluster remove {name}"
        ) in out.splitlines()


def test_several_nodes_share_an_environment(machine: Machine) -> None:
    assert machine.run("install")[0] == 0
    status, out, _ = machine.run("install", "--name", "b")
    assert status == 0
    assert machine.called("systemctl") == ["daemon-reload", "enable --now p2pnn@b.service"]
    assert machine.called("python") == []
    found = tomllib.loads((machine.root / "etc/p2pnn/b/node.toml").read_text())
    assert found == {"listen": "0.0.0.0:7710"}
    assert f"P2PNN_SOCKET={machine.root}/run/p2pnn-b/p2pnn.sock p2pnn node status" in out
    assert machine.run("remove", "--name", "b")[0] == 0
    assert machine.files() == {UNIT, PYTHON_FILE, CONFIGURATION, "etc/p2pnn/b/node.toml"}
    assert machine.run("remove")[0] == 0
    assert machine.files() == {CONFIGURATION, "etc/p2pnn/b/node.toml"}


def test_again_brings_it_up_to_date_and_leaves_the_configuration(machine: Machine) -> None:
    machine.run("install")
    (machine.root / CONFIGURATION).write_text('listen = "127.0.0.1:7790"\n')
    (machine.root / UNIT).write_text("old")
    assert machine.run("install")[0] == 0
    assert (machine.root / CONFIGURATION).read_text() == 'listen = "127.0.0.1:7790"\n'
    assert (machine.root / UNIT).read_text() != "old"
    assert machine.called("systemctl")[-1] == "try-restart p2pnn.service"
    assert len(machine.called("python")) == 2


def test_a_dry_run_prints_lines_and_does_nothing(machine: Machine) -> None:
    for words in (["install"], ["install", "--name", "b"]):
        status, out, err = machine.run(*words, "--dry-run")
        assert (status, err, machine.files()) == (0, "", set())
    assert out.splitlines()[0] == "umask 0022"
    assert all(line.startswith("# ") for line in out.splitlines()[1::2])
    machine.run("install")
    before = machine.files()
    assert machine.run("remove", "--purge", "--dry-run")[0] == 0
    assert machine.files() == before


def test_the_lines_of_a_dry_run_can_be_typed(machine: Machine, tmp_path: Path) -> None:
    _, out, _ = machine.run("install", "--name", "b", "--dry-run")
    (tmp_path / "typed").write_text("set -e\n" + out)
    assert subprocess.run(["sh", str(tmp_path / "typed")]).returncode == 0
    typed = machine.files()
    shutil.rmtree(machine.root)
    machine.root.mkdir()
    machine.run("install", "--name", "b")
    assert machine.files() == typed


@pytest.mark.parametrize("words", [["install"], ["remove", "--purge"]])
def test_without_root(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["service", *words]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("p2pnn: services are root's to change; run it as root: sudo /")
    assert len(err.splitlines()) == 1


def test_without_systemd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    status, out, err = machine.run("install")
    assert (status, out) == (2, "")
    assert "no systemd on this machine" in err


def test_a_step_that_fails_ends_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(os.environ["PATH"].partition(os.pathsep)[0]) / "groupadd").write_text("#!/bin/sh\nexit 10\n")
    status, _, err = machine.run("install")
    assert status == 1
    assert err == (
        "p2pnn: `groupadd --system --force p2pnn` ended with status 10 and said why above; mend it and run the same again\n"
    )
    assert machine.called("systemctl") == []


def test_a_command_that_is_not_there_ends_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "find", lambda: Origin("/src", origin.units(), "/no/such/python"))
    status, _, err = machine.run("install")
    assert (status, err) == (
        1,
        "p2pnn: /no/such/python cannot be run: No such file or directory; install it and run the same again\n",
    )


def test_nothing_to_remove_and_no_name(machine: Machine) -> None:
    status, _, err = machine.run("remove")
    assert (status, err) == (2, "p2pnn: there is no service p2pnn.service on this machine\n")
    status, _, err = machine.run("install", "--name", "../x")
    assert status == 2
    assert "--name '../x' cannot be the name of a service" in err


def test_a_name_that_was_never_installed_is_told(machine: Machine) -> None:
    machine.run("install", "--name", "b")
    status, _, err = machine.run("remove", "--name", "c")
    assert (status, err) == (2, "p2pnn: there is no service p2pnn@c.service on this machine\n")
    assert machine.called("systemctl") == []
