"""`train --rehearse-failure`: what is refused, what is drawn, and a whole rehearsal with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnn.cli import main, rehearse
from p2pnn.cli.rehearse import Rehearsal, curve


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--socket", "x"], "a mesh of its own"),
        (["--detach"], "a mesh of its own"),
        (["--local", "1"], "nobody would be left"),
        (["--parallel", "data"], "leave --parallel data or --rehearse-failure away"),
        (["--local", "99"], "1 to 26"),
        (["--local", "2", "--nodes", "3"], "--nodes 3"),
    ],
)
def test_a_rehearsal_that_is_none_is_refused_before_anything_starts(
    more: list[str], words: str, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_: pytest.fail("something was started"))
    assert main(["train", "--rehearse-failure", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("p2pnn: ")
    assert words in err


def test_the_curve_has_a_mark_where_the_node_died_and_bars_as_long_as_losses() -> None:
    calm = Rehearsal(curve={1: 2.0, 2: 1.0, 3: 0.5})
    struck = Rehearsal(curve={1: 2.0, 2: 1.0, 3: float("nan")}, victim="b", killed_at=13, during_epoch=2)
    lines = curve(calm, struck)
    assert [line.split()[0] for line in lines] == ["epoch", "1", "╳", "2", "3"]
    assert lines[2].split() == ["╳", "node", "b", "was", "killed", "at", "step", "13"]
    assert [line.count("█") for line in lines] == [0, rehearse.BAR_CELLS, 0, rehearse.BAR_CELLS // 2, 0]


@pytest.mark.usefixtures("warm_processes")
def test_a_rehearsal_ends_with_the_same_bits(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--rehearse-failure", "--epochs", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["victim"] in ("b", "c")
    assert found["bits"] == found["undisturbed_bits"]
    assert found["redone"] <= 8
    assert found["stood_still_s"] > 0
    assert sorted(map(int, found["losses"])) == list(range(1, 5))
    assert f"node {found['victim']} is killed at step" in err
    assert "went on from step" in err
