"""What is shown of a node that drains, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import leaving, main
from p2pnn.cli.http import Daemon
from p2pnn.errors import NoDaemonError, NotAllowedError
from tests.cli.fake import FakeDaemon, fake_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path / "s") as found:
        yield found


def drains(daemon: FakeDaemon, *lines: Any) -> None:
    daemon["POST node/drain"] = lambda body: iter(lines)


def test_it_tells_whether_the_node_has_left(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    for last, left in (({"left": True}, True), ({"left": False}, False), ({}, False)):
        drains(daemon, {"waits_for": "b"}, {"drained": True, **last})
        assert leaving.drain(Daemon(daemon.path), "a", force=True, leave=True) is left
        assert capsys.readouterr().err == "waiting for b …\n"
    leaving.drain(Daemon(daemon.path), "a", force=False, leave=False)
    asked = [json.loads(body) for body in daemon.bodies("POST node/drain")]
    assert asked == [*[{"force": True, "leave": True}] * 3, {"force": False}]


def test_a_refusal_and_an_end_before_its_time_are_errors(daemon: FakeDaemon) -> None:
    drains(daemon, {"waits_for": "b"}, {"error": "nobody can take it over", "exit": 4})
    with pytest.raises(NotAllowedError, match="nobody can take it over"):
        leaving.drain(Daemon(daemon.path), "a", force=False, leave=False)
    for lines in ([], [{"waits_for": "b"}], [{"waits_for": "b"}, None]):
        drains(daemon, *lines)
        with pytest.raises(NoDaemonError, match="node a ended before it had drained"):
            leaving.drain(Daemon(daemon.path), "a", force=False, leave=False)


@pytest.mark.parametrize(
    ("words", "last", "said"),
    [
        ([], {}, "node a has drained and is stopping"),
        (["--leave"], {"left": True}, "node a has drained and left its cluster and is stopping"),
        (["--leave", "--force"], {"left": False}, "type on another member: p2pnn cluster remove a"),
    ],
)
def test_the_commands_last_line(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], words: list[str], last: dict[str, Any], said: str
) -> None:
    drains(daemon, {"drained": True, **last})
    assert main(["node", "drain", *words, "--socket", str(daemon.path)]) == 0
    assert capsys.readouterr().out.endswith(said + "\n")
