"""`cluster show`: what a person reads of the charter."""

import json
from typing import Any

import pytest

from p2pnn.cli import main
from tests.cli.fake import FakeDaemon

A, B, C, D = (letter * 32 for letter in "abcd")
FOUND: dict[str, Any] = {
    "cluster": "f00d",
    "coordinator": B,
    "term": 3,
    "version": "3.7",
    "role": "follower",
    "alarm": False,
    "disk": "",
    "members": [
        {"node": A, "name": "attic", "voter": True, "state": "self"},
        {"node": B, "name": "barn", "voter": True, "state": "alive"},
        {"node": C, "name": "cellar", "voter": True, "state": "away"},
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
        ["cellar", C, "away", "voter"],
        ["desk", D, "alive", "learner"],
    ]
    assert err == ""


def test_what_is_wrong_is_said(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND | {"coordinator": None, "alarm": True, "disk": "the disk is full"}
    assert main(["cluster", "show"]) == 0
    out, err = capsys.readouterr()
    assert "nobody: an election is under way" in out
    assert "more than half of the members were lost at once" in err
    assert "does not vote: the disk is full" in err


def test_a_node_that_nobody_has_admitted_yet(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND | {"cluster": "", "coordinator": None, "version": "", "members": []}
    assert main(["cluster", "show"]) == 0
    assert "has not admitted this node" in capsys.readouterr().out


def test_json(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET cluster"] = FOUND
    assert main(["cluster", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND
