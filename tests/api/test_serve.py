"""The daemon as a process: what it says when it is ready, and every reason not to start."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnn.api.serve import _words, bind_socket
from p2pnn.cli.http import Daemon
from p2pnn.errors import NotAllowedError, StorageError, UsageError
from p2pnn.node.daemon import Daemon as NodeDaemon
from p2pnn.types import Address
from tests.integration.mesh import Mesh, mesh, wait_until
from tests.node.test_identity import secured
from tests.support import warm

IDLE_BYTES_MAX = 90_000_000


def refused(*arguments: str) -> tuple[int, str]:
    """Start a daemon that must not start: its exit status and what it said."""
    command = [sys.executable, "-m", "p2pnn", "node", "start", "--name", "x", *arguments]
    with tempfile.TemporaryFile() as said:
        status = warm.start(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said).wait(30)
        said.seek(0)
        words = said.read().decode()
    assert "Traceback" not in words, words
    return status, words


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("one"), 1, cold=True) as m:
        yield m


def test_a_ready_daemon_tells_where_it_is_and_takes_little_memory(one: Mesh) -> None:
    node = one.nodes["a"]
    found = one["a"].get("node")
    assert (found["pid"], found["address"], found["name"]) == (node.process.pid, node.address, "a")
    mode = (one.folder / "a/p2pnn.sock").stat().st_mode
    assert mode & 0o777 == 0o600
    wait_until(lambda: one["a"].get("node")["profile"] is not None, "it is measured")
    assert one["a"].get("node")["rss_bytes"] <= IDLE_BYTES_MAX


def test_what_stands_in_the_way_is_one_sentence(one: Mesh, tmp_path: Path) -> None:
    folder, address = one.folder / "a", one.nodes["a"].address
    fresh = ["--state-dir", str(tmp_path / "x"), "--listen", "127.0.0.1:0"]
    plain = tmp_path / "plain"
    plain.write_text("keep me")
    for arguments, status, sentence in (
        (["--state-dir", str(folder), "--listen", "127.0.0.1:0"], 2, "another daemon uses the state folder"),
        ([*fresh, "--socket", str(folder / "p2pnn.sock")], 2, "another daemon answers on"),
        ([*fresh, "--socket", str(plain)], 2, "exists and is not a socket"),
        (
            ["--state-dir", str(tmp_path / "y"), "--listen", address],
            2,
            f"port {address.rpartition(':')[2]} on 127.0.0.1 is in use",
        ),
        (["--state-dir", str(tmp_path / "z"), "--plain", "--listen", "0.0.0.0:0"], 4, "without credentials"),
        (["--state-dir", str(tmp_path / "w"), "--join", address], 2, "a token is needed"),
        (["--state-dir", str(folder.parent / "a"), "--plain", "--listen", address], 2, "another daemon uses"),
    ):
        code, said = refused(*arguments)
        assert code == status, said
        assert sentence in said
        assert len(said.strip().splitlines()) == 1, said
    assert plain.read_text() == "keep me"
    assert not list(tmp_path.glob("*/p2pnn.sock"))
    assert one["a"].answers()  # nobody took its socket away


def test_stopping_by_signal_by_request_and_by_the_lifeline(tmp_path: Path) -> None:
    with mesh(tmp_path) as m:
        m.start("a")
        m.nodes["a"].kill(signal.SIGTERM)
        assert m.nodes["a"].process.returncode == 0
        m.start("a")  # the folder and the socket are free
        m["a"].post("node/stop")
        assert m.nodes["a"].process.wait(10) == 0
        assert not (tmp_path / "a/p2pnn.sock").exists()
        m.start("a").kill()
        assert (tmp_path / "a/p2pnn.sock").exists()
        m.start("a")  # replaces what the dead one left
        os.write(m.lifeline[1], b"a byte is no end")
        assert m["a"].answers()
        assert m.nodes["a"].process.poll() is None
        os.close(m.lifeline[1])
        assert m.nodes["a"].process.wait(10) == 0
        m.lifeline = (m.lifeline[0], os.open(os.devnull, os.O_RDONLY))


def test_a_daemon_without_a_listener_for_its_ready_line_goes_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    alive, held = os.pipe()
    folder = tmp_path / "a"
    arguments = ["--name", "a", "--state-dir", str(folder), "--listen", "127.0.0.1:0", "--lifeline", str(alive)]
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pnn", "node", "start", *arguments, "--ready-fd", str(writing)],
        pass_fds=(writing, alive),
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    try:
        daemon = Daemon(folder / "p2pnn.sock")
        wait_until(daemon.answers, "it answers")
        daemon.close()
    finally:
        os.close(held)
        os.close(alive)
        assert process.wait(10) == 0


def test_a_person_who_starts_it_sees_where_it_listens(tmp_path: Path) -> None:
    arguments = ["--name", "a", "--state-dir", str(tmp_path / "a"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pnn", "node", "start", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert select.select([output], [], [], 30)[0]
        first = output.readline().decode()
        process.send_signal(signal.SIGINT)
        rest = output.read().decode()
    assert process.wait(10) == 0
    assert "node a listens on 127.0.0.1:" in first
    assert f"speak to it with: export P2PNN_SOCKET={tmp_path}/a/p2pnn.sock" in rest.splitlines()
    address = first.split()[-1]
    assert re.search(rf"^  p2pnn join p2pnn1\.[0-9a-f]{{64}}\.[0-9a-f]{{8}}\.[0-9a-f]{{32}} {address}$", rest, re.M)


def test_who_founds_where_no_address_is_found_is_told_so_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnn.node.identity.interfaces", list)

    async def body() -> list[str]:
        daemon = NodeDaemon(secured(tmp_path, "a", listen=Address("127.0.0.1", 0), ready_fd=None))
        await daemon.start()
        daemon.address = Address("0.0.0.0", daemon.address.port)
        try:
            return _words(daemon.config, daemon)
        finally:
            await daemon.close("over")

    *_, last = asyncio.run(body())
    assert last.startswith("founded cluster ")
    assert "no address was found" in last


def test_a_socket_is_bound_for_its_owner_only_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "s.sock"
    first = bind_socket(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first.close()  # what a daemon that was killed leaves
    second = bind_socket(path)
    second.listen(1)
    with pytest.raises(UsageError, match="another daemon answers on"):
        bind_socket(path)
    with contextlib.ExitStack() as stack:  # also when its queue is full
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        with pytest.raises(UsageError, match="another daemon answers on"):
            bind_socket(path)
    second.close()
    link = tmp_path / "link.sock"
    link.symlink_to(path)
    with pytest.raises(UsageError, match="is not a socket"):
        bind_socket(link)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        bind_socket(tmp_path / "file" / "s.sock")


def test_a_socket_for_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    folder = tmp_path / "open"
    folder.mkdir(mode=0o750)
    bind_socket(folder / "s.sock", own).close()
    found = (folder / "s.sock").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, os.getegid())
    assert caplog.records == []
    bind_socket(tmp_path / "closed" / "s.sock", own).close()  # a folder that the daemon makes is its own
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "they may not enter the folder" in caplog.text
    with pytest.raises(UsageError, match="there is no group nobody-has-this to open the socket to") as unknown:
        bind_socket(folder / "s.sock", "nobody-has-this")
    assert unknown.value.setting == "socket_group"

    def refuse(path: Path, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("p2pnn.api.serve.os.chown", refuse)
    other = next(group for group in grp.getgrall() if group.gr_gid != os.getegid())
    with pytest.raises(NotAllowedError, match=f"cannot be opened to the group {other.gr_name}, because") as foreign:
        bind_socket(folder / "s.sock", other.gr_name)
    assert foreign.value.setting == "socket_group"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_a_socket_is_given_to_a_group_that_does_not_own_it_yet(tmp_path: Path) -> None:
    other = next(group for group in grp.getgrall() if group.gr_gid != os.getegid())
    bind_socket(tmp_path / "s.sock", other.gr_name).close()
    found = (tmp_path / "s.sock").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, other.gr_gid)


def test_a_plain_node_loads_no_cryptography() -> None:
    """It would start a tenth of a second later, and `--local` starts three."""
    program = "import sys, p2pnn.api.serve; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
