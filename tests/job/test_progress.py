"""The meter of a run."""

from __future__ import annotations

import math

from p2pnn.job.progress import ProgressMeter, finished
from p2pnn.job.script import Progress
from p2pnn.job.spec import Dataset, JobSpec, Split
from p2pnn.model.graph import Graph, Metric


def spec() -> JobSpec:
    graph = Graph((), (), (), (), (), {}, metrics=(Metric("accuracy", "mean", "hits"),))
    return JobSpec("n", graph, {}, train=Split(Dataset("d", 100, ()), 0, 100), batch_size=10, epochs=2)


def progress(step: int, loss: float = 0.0, rows: int = 0, hits: float = 0.0) -> Progress:
    return Progress(step, (loss, rows), {"accuracy": (hits, float(rows))} if rows else {}, 0.5, 1.0)


def test_the_slowest_node_is_what_counts_and_rates_follow_a_window() -> None:
    meter = ProgressMeter(spec(), 0, 0.0)
    meter.start(0.0, ["a", "b"])
    assert meter.add("a", progress(5), 0.5) is None
    event = meter.add("b", progress(4, 8.0, 40, 30.0), 1.0)
    assert event is not None
    assert event["step"] == 4
    assert event["loss"] == 0.2
    assert event["metrics"] == {"accuracy": 0.75}
    assert event["samples_per_s"] == 40.0
    assert event["busy"] == {"a": 0.5, "b": 0.5}
    assert event["left_s"] == 4.0


def test_events_are_spaced_and_their_sums_lose_nothing() -> None:
    meter = ProgressMeter(spec(), 0, 0.0)
    assert meter.add("a", progress(1, 1.0, 10), 1.0) is not None
    assert meter.add("a", progress(2, 2.0, 10), 1.1) is None
    event = meter.add("a", progress(3, 4.0, 10), 1.3)
    assert event is not None
    assert event["loss"] == 6.0 / 20


def test_an_epoch_adds_up_and_starts_over() -> None:
    meter = ProgressMeter(spec(), 0, 0.0)
    meter.add("a", progress(5, 5.0, 50, 25.0), 1.0)
    meter.add("a", progress(10, 15.0, 50, 35.0), 2.0)
    entry = meter.end_epoch(1, 10, 2.0)
    assert entry == {"epoch": 1, "step": 10, "loss": 0.2, "accuracy": 0.6, "samples_per_s": 50.0}
    assert "loss" not in meter.end_epoch(2, 20, 3.0)


def test_what_was_trained_again_is_told_of_its_epoch_alone() -> None:
    meter = ProgressMeter(spec(), 4, 0.0, uneven=(2, 1))
    meter.start(0.0, ["a"])
    entry = meter.end_epoch(1, 10, 2.0)
    assert (entry["trained_again"], entry["never_trained"]) == (2, 1)
    assert "trained_again" not in meter.end_epoch(2, 20, 3.0)
    follower = ProgressMeter(spec(), 10, 4.0)
    follower.follow(meter)
    assert "trained_again" not in follower.end_epoch(1, 10, 5.0), "that was on parameters that are given up"


def test_metrics_are_finished_by_kind() -> None:
    assert finished("mean", 3.0, 4.0) == 0.75
    assert finished("root", 8.0, 2.0) == 2.0
    assert finished("exp", 0.0, 2.0) == 1.0
    assert math.isinf(finished("exp", 1e6, 1.0))
    assert math.isnan(finished("mean", 0.0, 0.0))


def test_a_run_that_follows_a_lost_one_knows_what_that_had_told() -> None:
    lost = ProgressMeter(spec(), 0, 0.0)
    lost.start(0.0, ["a", "b"])
    for step, loss in ((10, 2.0), (20, 1.0)):
        lost.add("a", Progress(step, (0.0, 0), {}, 0.1, 0.2), 1.0)
        lost.add("b", Progress(step, (loss * 80, 80), {}, 0.1, 0.2), 1.0)
        if step == 10:
            assert lost.end_epoch(1, 10, 1.0)["loss"] == 2.0
    for step, known in ((20, 1.0), (16, None), (8, None)):
        again = ProgressMeter(spec(), step, 2.0)
        again.follow(lost)
        again.start(2.0, ["a"])
        if step == 8:
            again.add("a", Progress(10, (5.0 * 16, 16), {}, 0.1, 0.2), 3.0)
            assert again.end_epoch(1, 10, 3.0)["loss"] == 2.0, "all of the epoch, not its last steps"
        entry = again.end_epoch(2, 20, 4.0)
        assert entry.get("loss") == known
