"""`join` and `token`: what is sent to the daemon, what is said, and what is refused before."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import main
from tests.cli.fake import FakeDaemon

TOKEN = f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}"
OTHER = f"p2pnn1.{'ab' * 32}.89abcdef.{'cd' * 16}"
SHOWN: dict[str, Any] = {"id": "01234567", "by": "a", "created_s": 1.8e9, "expires_s": 1.8e9 + 86400, "revoked": False}


@pytest.fixture
def joins(daemon: FakeDaemon) -> FakeDaemon:
    daemon["POST join"] = {"cluster": "ab" * 32, "address": "10.0.0.1:7700"}
    return daemon


def sent(daemon: FakeDaemon, key: str) -> Any:
    return json.loads(daemon.bodies(key)[-1])


def test_the_printed_line(joins: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["join", TOKEN, "10.0.0.1:7700", "[fd00::1]:7700"]) == 0
    expected = {"token": TOKEN, "addresses": ["10.0.0.1:7700", "[fd00::1]:7700"], "force": False}
    assert sent(joins, "POST join") == expected
    assert capsys.readouterr().out.startswith("joined cluster abababab by 10.0.0.1:7700")


def test_the_token_by_file_by_environment_and_by_standard_input(
    joins: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert main(["join", "--token-file", str(file), "h:1"]) == 0
    assert sent(joins, "POST join")["token"] == TOKEN
    for arguments in (["join", "-", "h:1"], ["join", "--token-file", "-", "h:1"]):
        monkeypatch.setattr("sys.stdin", io.StringIO(OTHER + "\n"))
        assert main(arguments) == 0
        assert sent(joins, "POST join") == {"token": OTHER, "addresses": ["h:1"], "force": False}
    monkeypatch.setenv("P2PNN_TOKEN", OTHER)
    assert main(["join", "h:1", "--force"]) == 0
    assert sent(joins, "POST join") == {"token": OTHER, "addresses": ["h:1"], "force": True}
    assert main(["join", TOKEN, "h:1"]) == 0
    assert sent(joins, "POST join")["token"] == TOKEN


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["join"], "no token"),
        (["join", "h:1"], "no token"),
        (["join", TOKEN], "no address"),
        (["join", "p2pnn1.x", "h:1"], "bad token"),
        (["join", TOKEN, "h:1", "--token-file", "f"], "given twice"),
        (["join", "h:1", "--token-file", "/nowhere/f"], "cannot be read"),
        (["token", "create", "--valid", "long"], "is not a time"),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    joins: FakeDaemon, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main(arguments) == 2
    assert why in capsys.readouterr().err
    assert not joins.bodies("POST join")


def test_without_a_daemon_it_says_how_to_start_one_that_joins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["join", TOKEN, "10.0.0.1:7700", "--socket", str(tmp_path / "none")]) == 3
    assert "p2pnn node start --token-file FILE --join 10.0.0.1:7700" in capsys.readouterr().err


def test_a_token_is_made_listed_and_revoked(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["POST tokens"] = SHOWN | {"token": TOKEN, "line": f"p2pnn join {TOKEN} h:1"}
    assert main(["token", "create", "--valid", "90m"]) == 0
    assert sent(daemon, "POST tokens") == {"valid_s": 5400}
    out, err = capsys.readouterr()
    assert out == f"p2pnn join {TOKEN} h:1\n"
    assert "p2pnn token revoke 01234567" in err
    daemon["GET tokens"] = {"tokens": [SHOWN, SHOWN | {"id": "89abcdef", "revoked": True}]}
    assert main(["token", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("01234567", "good"), ("89abcdef", "revoked")]
    assert main(["token", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 2
    daemon["GET tokens"] = {"tokens": []}
    assert main(["token", "list"]) == 0
    assert "no token lets anybody in" in capsys.readouterr().err
    daemon["POST tokens/revoke"] = {}
    assert main(["token", "revoke", TOKEN]) == 0
    assert capsys.readouterr().out == "token 01234567 lets nobody in any more\n"


def test_a_member_is_removed(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["POST members/remove"] = {}
    assert main(["cluster", "remove", "attic"]) == 0
    assert sent(daemon, "POST members/remove") == {"member": "attic"}
    daemon["POST members/remove"] = (403, {"error": "no member is called 'x'", "exit": 4})
    assert main(["cluster", "remove", "x"]) == 4
