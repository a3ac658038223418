"""Which mesh a command speaks to: never a local one in place of a daemon that was asked for."""

from pathlib import Path

import pytest

from p2pnn.cli.mesh import connect, opened, wants_local
from p2pnn.config import client_socket
from p2pnn.errors import NoDaemonError, NotAllowedError, UsageError
from tests.cli.fake import FakeDaemon, fake_daemon


def test_without_a_daemon_it_is_a_local_mesh() -> None:
    assert wants_local(None, None) == 3
    assert wants_local(None, None, default=1) == 1
    assert wants_local(2, None) == 2


def test_a_daemon_that_answers_is_used(daemon: FakeDaemon) -> None:
    assert wants_local(None, None) == 0
    assert wants_local(None, str(daemon.path)) == 0
    with opened(0, None) as mesh:
        assert mesh.daemon.get("node")["name"] == "a"
        assert mesh.local is None
        assert mesh.fallen() == ""


def test_local_never_contacts_a_daemon(daemon: FakeDaemon) -> None:
    assert wants_local(2, None) == 2
    assert daemon.calls == []


def test_a_daemon_that_was_asked_for_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "none.sock"
    with pytest.raises(NoDaemonError, match=r"none\.sock; start one"):
        wants_local(None, str(named))
    monkeypatch.setenv("P2PNN_SOCKET", str(named))
    with pytest.raises(NoDaemonError, match=r"none\.sock"):
        wants_local(None, None)


def test_a_socket_that_nobody_answers_on_and_nobody_asked_for(own_home: Path) -> None:
    with fake_daemon(client_socket().path):
        pass
    assert wants_local(None, None) == 3


def test_a_socket_that_may_not_be_opened_is_an_error(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, address: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(NotAllowedError, match="may not be opened by this user"):
        wants_local(None, None)


def test_words_that_contradict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"):
        wants_local(2, str(tmp_path / "x"))
    for count in (0, -1, 27):
        with pytest.raises(UsageError, match=f"--local {count}: a local mesh has 1 to 26 nodes"):
            wants_local(count, None)


def test_nodes_that_the_local_mesh_will_not_have(daemon: FakeDaemon) -> None:
    assert wants_local(3, None, nodes=3) == 3
    assert wants_local(3, None, nodes=["c", "a"]) == 3
    with pytest.raises(UsageError, match=r"--nodes 4 is more than the 3 nodes of the local mesh; add --local 4"):
        wants_local(3, None, nodes=4)
    with pytest.raises(UsageError, match=r"the local mesh of 3 has no node 'd'; there are a, b, c"):
        wants_local(3, None, nodes=["a", "d"])
    with pytest.raises(UsageError, match=r"--workers 4 is more than the 3 nodes .* each takes one; add --local 4"):
        wants_local(3, None, workers=4)
    assert wants_local(None, None, workers=40) == 0
    assert wants_local(None, None, nodes=40) == 0  # a daemon knows itself how many there are


def test_connect_sends_nothing(daemon: FakeDaemon) -> None:
    assert connect(None).path == daemon.path
    assert daemon.calls == []
