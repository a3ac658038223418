"""What the measurements of benchmarks/ share: turns, ratios, reports, workers, and reading a job's speed from its events."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

pytest.importorskip("benchmarks", reason="a source distribution has no measurements")

from benchmarks import _cases
from benchmarks._measure import Contest, Report, Target, arguments
from benchmarks._worker import PYTHON_VARIABLE, Absent, Worker, torch_python


def contest(**samples: list[float]) -> Contest:
    return Contest("copying", "ms", ours="ours", samples=samples)


def test_contestants_take_turns_in_an_order_that_rotates() -> None:
    called: list[str] = []

    def round_of(name: str, figure: float) -> Any:
        def run() -> float:
            called.append(name)
            return figure

        return run

    found = contest().run({"a": round_of("a", 1.0), "b": round_of("b", 2.0)}, rounds=2)
    assert called == ["b", "a", "a", "b", "b", "a"]  # the first turn warms up
    assert found.samples == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    found = contest(ours=[1.0, 20.0, 3.0], theirs=[2.0, 10.0, 4.0])
    assert found.ratio("theirs") == 0.75
    assert found.median("ours") == 3.0
    assert found.best("ours") == 1.0


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [
        (Target("t", at_most=0.9), 0.9, True),
        (Target("t", at_most=0.9), 0.91, False),
        (Target("t", at_least=1.5), 1.5, True),
        (Target("t", at_least=1.5), 1.4, False),
    ],
)
def test_targets(target: Target, ratio: float, met: bool) -> None:
    assert target.is_met(ratio) is met


def test_a_report_says_what_was_missed_and_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("test", facts={"data": "made up"}, absent={"torch": "it is not installed"})
    report.add(
        contest(ours=[2.0], theirs=[1.0]), Target("theirs", at_most=1.5), Target("nobody", at_most=1.0), show=False
    )
    assert report.missed() == ["copying: ours / theirs is 2.00, not ≤ 1.5"]
    record = report.as_record()
    assert record["contests"][0]["contestants"]["theirs"]["ratio"] == 2.0
    assert record["contests"][0]["targets"] == [{"against": "theirs", "wanted": "≤ 1.5", "ratio": 2.0, "met": False}]
    assert report.end(arguments("", ["--json"])) == 0
    assert json.loads(capsys.readouterr().out)["missed"] == report.missed()
    assert report.end(arguments("", ["--markdown"])) == 0
    table = capsys.readouterr().out.splitlines()
    assert "| copying [ms] | 2 | 1 (2.00; ≤ 1.5, missed) |" in table
    assert "- torch is left out: it is not installed" in table


def test_every_case_has_both_sides() -> None:
    ours = pytest.importorskip("benchmarks._ours")
    kinds = {case.kind for case in _cases.OPS} - {"loss"}
    assert kinds <= ours.OPS.keys()
    assert len({case.name for case in _cases.ALL}) == len(_cases.ALL)
    for case in _cases.OPS:
        graph = ours.one_op(case.as_record())
        assert [op for op in graph.ops if not op.name.startswith(("before/", "after/"))], case.name


def test_ours_runs_an_op_an_optimizer_and_steps() -> None:
    with Worker(sys.executable, "_ours", "steps") as worker:
        tiny = {"rows": 4, "shape": [3], "at_most": 0.0, "least_s": 0.0}
        cases = [
            {"name": "op", "kind": "linear", "settings": {"features": 2}, "steps": False},
            {"name": "optimizer", "kind": "optimizer", "settings": {"optimizer": "adam"}, "steps": False},
            {"name": "steps", "kind": "mlp", "settings": {"optimizer": "sgd", "hidden": [3]}, "steps": True},
        ]
        for case in cases:
            assert worker.ask("prepare", **tiny, **case) == {"count": 1}
            assert worker.ask("round", count=2)["seconds"] > 0
        assert worker.ask("memory")["allocated"] > 0


def test_a_worker_that_ends_is_told() -> None:
    with Worker(sys.executable, "_worker") as worker, pytest.raises(RuntimeError, match=r"benchmarks\._worker ended"):
        worker.ask("prepare")


def test_a_python_without_torch_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Absent, match="/nowhere/python has no torch"):
        torch_python("/nowhere/python")
    monkeypatch.setenv(PYTHON_VARIABLE, "/elsewhere/python")
    with pytest.raises(Absent, match="/elsewhere/python"):
        torch_python(None)


def test_a_jobs_speed_is_the_slope_of_its_later_steps() -> None:
    mesh = pytest.importorskip("benchmarks.mesh")
    assert mesh.slope([(0.0, 1), (4.0, 10), (5.0, 20), (6.0, 30)]) == pytest.approx(10.0)

    def progress(time: float, step: int) -> dict[str, Any]:
        return {"kind": "progress", "time": time, "step": step, "loss": 2.0, "busy": {"a": 0.5}}

    events = [
        {"kind": "plan", "time": 100.5, "plan": {"samples_per_s": 99.0}},
        {"kind": "state", "time": 101.0, "state": "running"},
        *(progress(101.0 + n / 4, n) for n in range(1, 20)),
    ]
    effort = mesh.told(events, 32, 100.0)
    assert effort.samples_per_s == pytest.approx(4 * 32)
    assert effort.start_s == 1.0
    assert effort.predicted == 99.0
    assert effort.losses[0] == (0.25, 1, 2.0)


def test_times_to_a_loss_are_those_to_one_that_all_reach() -> None:
    mesh = pytest.importorskip("benchmarks.mesh")
    curves = {"a": [(1.0, 1, 2.0), (2.0, 2, 1.0), (3.0, 3, 0.5)], "b": [(1.0, 1, 2.0), (5.0, 2, 1.0)]}
    longest = {name: mesh.Effort(1.0, losses) for name, losses in curves.items()}
    assert mesh.facts({}, longest) == {"until a loss of 1.050": "a 2.0 s, b 5.0 s"}
