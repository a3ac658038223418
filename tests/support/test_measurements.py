"""What the measurements of benchmarks/ share: turns, ratios, reports, workers, and reading a job's speed from its events."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="a source distribution has no measurements")

from benchmarks import _cases, engine
from benchmarks._measure import INTERRUPTED, UNUSABLE, Contest, Report, Target, arguments, conclude
from benchmarks._torch_python import VARIABLE, torch_python
from benchmarks._worker import Ended, Worker
from p2pnn.errors import DataError, UsageError


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


def test_a_figure_beside_its_bound_is_told_with_digits_that_show_its_side() -> None:
    assert Target("t", at_most=0.9).tell(0.9004) == "0.9004"
    assert Target("t", at_least=0.8).tell(0.7996) == "0.7996"
    assert Target("t", at_least=0.8).tell(0.8) == "0.80"


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


def test_a_bound_on_our_own_figure_needs_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("test", quick=True, versions={"torch": "9.9"})
    report.add(contest(ours=[2.0, 3.0, 4.0]), Target(at_most=2.5), show=False)
    assert report.missed() == ["copying: ours is 3 ms, not ≤ 2.5"]
    assert report.end(arguments("", ["--json"])) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["quick"], record["versions"]) == (True, {"torch": "9.9"})
    assert record["contests"][0]["targets"] == [{"against": None, "wanted": "≤ 2.5", "median": 3.0, "met": False}]
    report.end(arguments("", []))
    assert "torch 9.9, few short rounds (--quick)" in capsys.readouterr().out


def test_where_nothing_was_measured_the_reasons_are_told() -> None:
    with pytest.raises(UsageError, match="nothing could be measured; ours: it has no memory"):
        Report("test", absent={"ours": "it has no memory"}).end(arguments("", []))


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (DataError("there is no x"), UNUSABLE, "bench: there is no x"),
        (Ended("the process y ended"), UNUSABLE, "bench: the process y ended"),
        (KeyboardInterrupt(), INTERRUPTED, "bench: interrupted"),
    ],
)
def test_what_ends_a_measurement_is_one_sentence(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        raise error

    assert conclude(broken) == status
    assert capsys.readouterr().err == sentence + "\n"


def test_options_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: --fast; --help lists what there is"):
        arguments("", ["--fast"])
    assert engine.chosen("lenet-5, adam")
    with pytest.raises(UsageError, match=r"--only alexnet: no case has that in its name(.|\n)*ResNet-8"):
        engine.chosen("alexnet")


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
        about = worker.ask("about")
        assert about.keys() == {"bytes", "allocated", "predicted_s"}
        assert min(about["allocated"], about["predicted_s"]) > 0, (
            "the process itself may shrink by more than a tiny model takes"
        )


def test_a_worker_that_ends_is_told() -> None:
    with (
        Worker(sys.executable, "_worker") as worker,
        pytest.raises(Ended, match=r"benchmarks\._worker ended with status 0"),
    ):
        worker.ask("prepare")


def test_a_python_that_was_named_and_has_no_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--torch-python /nowhere/python has no torch \(No such file"):
        torch_python("/nowhere/python", Report("test"))
    monkeypatch.setenv(VARIABLE, "/elsewhere/python")
    with pytest.raises(UsageError, match=f"{VARIABLE}=/elsewhere/python has no torch"):
        torch_python(None, Report("test"))


def test_where_no_python_was_named_torch_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no torch' >&2; exit 1\n")
    bare.chmod(0o755)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "executable", str(bare))
    report = Report("test")
    assert torch_python(None, report) == ""
    assert "this Python has none (ModuleNotFoundError: no torch)" in report.absent["torch"]


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

    def efforts(**curves: list[tuple[float, int, float]]) -> Any:
        return {name: mesh.Effort(1.0, losses) for name, losses in curves.items()}

    a, b = [(1.0, 1, 2.0), (2.0, 2, 1.0), (3.0, 3, 0.5)], [(1.0, 1, 2.0), (5.0, 2, 1.0)]
    assert mesh.until_a_loss(efforts(a=a, b=b)) == (1.05, {"a": 2.0, "b": 5.0})
    assert mesh.until_a_loss(efforts(a=a, b=[(1.0, 1, float("nan"))])) is None


def test_a_mesh_is_judged_by_who_took_part() -> None:
    mesh = pytest.importorskip("benchmarks.mesh")
    samples = {name: [1.0] for name in (mesh.ONE, mesh.SYNC, mesh.ASYNC, mesh.PIPELINE)}
    judged = {(c.ours, t.against, t.at_least) for c, targets in mesh.contests(samples, 128) for t in targets}
    assert judged == {(mesh.ASYNC, mesh.ONE, 1.5), (mesh.ASYNC, mesh.PIPELINE, 1.9), (mesh.SYNC, mesh.PIPELINE, 1.1)}
    alone = [(c.ours, list(targets)) for c, targets in mesh.contests({mesh.ONE: [1.0]}, 512)]
    assert alone == [(mesh.ONE, [])]


def test_all_sides_of_a_mesh_do_as_many_steps_on_the_same_rows(tmp_path: Path) -> None:
    mesh = pytest.importorskip("benchmarks.mesh")
    rows = mesh.work.make_up(256)
    one = mesh.bout(64, rows, tmp_path, quick=True)
    for training in (one.short, one.longer):
        order = np.load(training.order)
        assert order.shape == (training.steps, 64)
        assert order.max() < len(np.load(tmp_path / "x.npy")) == 256
    with pytest.raises(UsageError, match="--batch 6: it is cut into 4 micro-batches, and the data has 256 rows"):
        mesh.check(6, 256)


def test_parameter_servers_are_judged_by_who_took_part() -> None:
    ps = pytest.importorskip("benchmarks.ps")
    names = [*ps.JOBS, *ps.CALLS, ps.TENSORFLOW]
    judged = {
        (contest.ours, target.against, target.at_least)
        for contest, targets in ps.contests({name: [1.0] for name in names})
        for target, _ in contest.judge(targets)
    }
    each = {(ps.EACH, ps.TORCH, 1.0), (ps.EACH, ps.TORCH_AHEAD, 1.0), (ps.EACH, ps.TENSORFLOW, 1.4)}
    assert judged == each | {(ps.FOURTH, ps.ONE, 1.5)}
    alone = [(contest.ours, contest.judge(targets)) for contest, targets in ps.contests({ps.EACH: [1.0]})]
    assert alone == [(ps.EACH, [])]


def test_a_parameter_servers_jobs_do_as_many_steps_as_asked() -> None:
    ps = pytest.importorskip("benchmarks.ps")
    rows = ps.work.make_up(256)
    for kind in ps.JOBS.values():
        spec = ps.prepared(rows, kind, 5).spec
        assert (spec.steps >= 5, spec.batch_size, spec.micro_batches) == (True, ps.BATCH, 1)
        assert (spec.data is None) == (kind.data is None)
    data = ps.prepared(rows, ps.JOBS[ps.FOURTH], 5).spec.data
    assert (data.n_push, data.n_fetch) == (4, 4)


def test_a_process_that_waits_makes_zeros_and_says_what_is_ready() -> None:
    waiting = pytest.importorskip("benchmarks._waiting")
    said: list[str] = []
    program: Any = waiting.Waiting(SimpleNamespace(memory_bytes=7), 0.0, ["b", "a"], said.append)
    program.forward(0, None, {})
    program.backward(0, None, {}, index=0)
    assert (said, program.memory_bytes) == (["b", "a"], 7)


def test_data_of_other_images_is_refused_before_a_mesh_is_measured(tmp_path: Path) -> None:
    work = pytest.importorskip("benchmarks._classification")
    np.savez(tmp_path / "other.npz", x=np.zeros((20, 8, 8), np.uint8), y=np.zeros(20, np.int64))
    with pytest.raises(
        DataError, match=r"other\.npz holds x \(uint8, 1 × 8 × 8 a row\), y \(int64, 1 a row\), but wanted are"
    ):
        work.load(str(tmp_path / "other.npz"), 100)
    with pytest.raises(DataError, match=r"there is no .*nothing; name data of 28 × 28 images"):
        work.load(str(tmp_path / "nothing"), 100)
