"""`cluster show`: what a person reads of the charter."""

import json
from typing import Any

import pytest

from p2pnn.cli import main, terminal
from tests.cli.fake import FakeDaemon

A, B, C, D = (letter * 32 for letter in "abcd")
FOUND: dict[str, Any] = {
    "cluster": "f00d",
    "coordinator": B,
    "term": 3,
    "version": "3.7",
    "role": "follower",
    "parked": "",
    "alarm": False,
    "lost": None,
    "disk": "",
    "jobs": [],
    "foreign": [],
    "members": [
        {"node": A, "name": "attic", "voter": True, "state": "self"},
        {"node": B, "name": "barn", "voter": True, "state": "alive"},
        {
            "node": C,
            "name": "cellar",
            "voter": True,
            "state": "away",
            "away": "3 min",
            "reason": "it was stopped",
            "gone_s": 170.0,
        },
        {"node": D, "name": "desk", "voter": False, "state": "alive"},
    ],
}


def test_a_cluster_in_order(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND
    assert main(["cluster", "show"]) == 0
    out, err = capsys.readouterr()
    head, _, members = out.partition("\n\n")
    said = dict(line.split(maxsplit=1) for line in head.splitlines())
    assert said == {
        "cluster": "f00d",
        "coordinator": "barn",
        "term": "3",
        "charter": "3.7",
        "voters": "3, a majority decides: attic, barn, cellar",
    }
    assert [line.split() for line in members.splitlines()[1:]] == [
        ["attic", A, "self", "voter"],
        ["barn", B, "alive", "coordinator"],
        ["cellar", C, *["away", "for", "3", "min", "(found", "dead):", "it", "was", "stopped"], "voter"],
        ["desk", D, "alive", "learner"],
    ]
    assert err == ""


def test_what_is_wrong_is_said(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    lost = {"count": 2, "members": 4, "since_s": 9.1, "since": "9 s"}
    foreign = [{"node": D, "name": "desk", "cluster": "cafe", "reason": "node desk belongs to cluster cafe"}]
    daemon["GET cluster"] = FOUND | {
        "coordinator": None,
        "alarm": True,
        "lost": lost,
        "disk": "the disk is full",
        "foreign": foreign,
    }
    assert main(["cluster", "show"]) == 0
    out, err = capsys.readouterr()
    assert "nobody: an election is under way" in out
    assert "more than half of the members were lost at once (2 of 4, 9 s ago)" in err
    assert "node desk belongs to cluster cafe" in err
    assert "does not vote: the disk is full" in err


def test_a_job_that_waits_is_shown_with_what_it_waits_for(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon["GET cluster"] = FOUND | {"jobs": [{"job": "digits-3f2a", "reason": "parked: no room; node cellar is away"}]}
    assert main(["cluster", "show"]) == 0
    assert "digits-3f2a is parked: no room; node cellar is away" in capsys.readouterr().out


def test_a_node_that_nobody_has_admitted_yet(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND | {"cluster": "", "coordinator": None, "version": "", "members": []}
    assert main(["cluster", "show"]) == 0
    assert "has not admitted this node" in capsys.readouterr().out


def test_json(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND
    assert main(["cluster", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


PARKED = FOUND | {"coordinator": None, "parked": "this node sees 1 of 3 voters (attic), and 2 must agree"}


def test_why_nothing_is_decided_here_is_shown(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = PARKED
    assert main(["cluster", "show"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.partition("\n\n")[0].splitlines())
    assert said["coordinator"] == "nobody"
    assert said["parked"].endswith("waits: this node sees 1 of 3 voters (attic), and 2 must agree")
    daemon["GET peers"] = {"peers": [], "parked": PARKED["parked"]}
    assert main(["peers"]) == 0
    assert PARKED["parked"] in capsys.readouterr().err


def test_a_cluster_with_a_coordinator_is_not_recovered(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND
    assert main(["cluster", "recover", "--yes"]) == 2
    assert "there is nothing to recover" in capsys.readouterr().err
    assert daemon.bodies("POST cluster/recover") == []


def test_a_recovery_says_what_is_lost_and_who_must_be_told(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon["GET cluster"] = PARKED
    daemon["POST cluster/recover"] = {"cluster": "beef", "version": "4.8"}
    assert main(["cluster", "recover"]) == 2, "there is nobody to be asked"
    assert daemon.bodies("POST cluster/recover") == []
    capsys.readouterr()
    assert main(["cluster", "recover", "--yes"]) == 0
    assert [json.loads(body) for body in daemon.bodies("POST cluster/recover")] == [{"cluster": "f00d"}]
    out, err = capsys.readouterr()
    assert "cluster beef, charter 4.8" in out
    assert "this node's charter 3.7" in err
    assert "cluster f00d would go on beside the new one" in err
    assert "barn, desk, cellar" in err


@pytest.mark.parametrize(("typed", "status"), [("f00d", 0), ("yes", 2), ("", 2)])
def test_a_recovery_needs_the_old_id_typed(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, typed: str, status: int
) -> None:
    daemon["GET cluster"] = PARKED
    daemon["POST cluster/recover"] = {"cluster": "beef", "version": "4.8"}
    monkeypatch.setattr(terminal, "can_ask", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *words, **options: typed)
    assert main(["cluster", "recover"]) == status
    assert len(daemon.bodies("POST cluster/recover")) == (status == 0)
