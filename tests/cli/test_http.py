"""The client: answers, and every way in which there is none."""

import os
from pathlib import Path

import pytest

from p2pnn.cli.http import Daemon, NotFoundError, segment
from p2pnn.errors import (
    JobFailedError,
    NoDaemonError,
    NotAllowedError,
    P2pnnError,
    TimedOutError,
    UsageError,
)
from tests.cli.fake import FakeDaemon


def test_json_raw_and_bodies(daemon: FakeDaemon) -> None:
    client = Daemon(daemon.path)
    daemon["GET blobs/aa"] = b"\x00\x01"
    daemon["POST jobs"] = lambda body: {"got": body.decode()}
    daemon["PUT blobs/bb"] = {}
    assert client.get("node")["name"] == "a"
    assert client.raw("blobs/aa") == b"\x00\x01"
    assert client.post("jobs", {"spec": "é"}) == {"got": '{"spec": "\\u00e9"}'}
    client.put("blobs/bb", memoryview(b"rows"))
    assert daemon.bodies("PUT blobs/bb") == [b"rows"]
    client.close()


def test_no_socket_and_nobody_behind_it(tmp_path: Path, daemon: FakeDaemon) -> None:
    missing = Daemon(tmp_path / "none.sock")
    with pytest.raises(
        NoDaemonError, match=r"no daemon answers on .*none\.sock; start one with `p2pnn node start`, or"
    ):
        missing.get("node")
    assert not missing.answers()
    assert Daemon(daemon.path).answers()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_socket_that_is_not_ours(daemon: FakeDaemon) -> None:
    daemon.path.chmod(0)
    with pytest.raises(NotAllowedError, match="may not be opened by this user"):
        Daemon(daemon.path).answers()


def test_permission_is_told_apart_from_absence(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, address: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(NotAllowedError, match="may not be opened by this user"):
        Daemon(daemon.path).answers()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, 2, UsageError),
        (403, 4, NotAllowedError),
        (404, 2, NotFoundError),
        (500, 1, JobFailedError),
        (503, 5, TimedOutError),
        (400, 99, P2pnnError),
    ],
)
def test_errors_come_by_their_exit_status(daemon: FakeDaemon, status: int, code: int, kind: type[P2pnnError]) -> None:
    daemon["GET jobs"] = (status, {"error": "the reason", "exit": code})
    with pytest.raises(P2pnnError, match=r"^the reason$") as caught:
        Daemon(daemon.path).get("jobs")
    assert type(caught.value) is kind


def test_an_error_without_a_reason(daemon: FakeDaemon) -> None:
    daemon["GET jobs"] = (500, b"<html>")
    with pytest.raises(P2pnnError, match="status 500 and no reason"):
        Daemon(daemon.path).get("jobs")


def test_an_idle_connection_that_was_closed_is_dialled_again(daemon: FakeDaemon) -> None:
    client = Daemon(daemon.path)
    client.get("node")
    answers = iter([None, {"name": "again"}])
    daemon["GET node"] = lambda body: next(answers)
    assert client.get("node") == {"name": "again"}
    client.close()


def test_a_daemon_that_breaks_off(daemon: FakeDaemon) -> None:
    daemon["GET jobs"] = lambda body: None
    with pytest.raises(NoDaemonError, match="broke off in the middle"):
        Daemon(daemon.path).get("jobs")


def test_no_answer_in_time(daemon: FakeDaemon) -> None:
    import threading

    release = threading.Event()
    daemon["GET jobs"] = lambda body: {} if release.wait(5) else None
    with pytest.raises(TimedOutError, match="gave no answer to GET jobs"):
        Daemon(daemon.path, timeout_s=0.05).get("jobs")
    release.set()


def test_streams(daemon: FakeDaemon) -> None:
    client = Daemon(daemon.path)
    daemon["GET whole"] = lambda body: iter([{"number": 1, "loss": float("nan")}, {"number": 2}])
    assert [line["number"] for line in client.stream("whole")] == [1, 2]
    daemon["GET broken"] = lambda body: iter([{"number": 1}, None])
    stream = client.stream("broken")
    assert list(stream) == [{"number": 1}]
    with pytest.raises(NotFoundError):
        list(client.stream("none"))


def test_segments_are_quoted() -> None:
    assert segment("a/../b?c") == "a%2F..%2Fb%3Fc"


def test_no_daemon_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"start one with `p2pnn node start`, or .* --socket or P2PNN_SOCKET$"):
        Daemon(tmp_path / "none.sock").get("node")
