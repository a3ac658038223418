"""Each reason is found, told once, and not told of a run that learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from p2pnn.ps.histogram import Histogram
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.report import Report
from p2pnn.ps.watchdog import Finding, Limits, Reason, Watchdog
from tests.ps.network import workers_named

A, B, C = workers_named(3)


def report(version: int, taken: dict[Worker, int], norms: dict[Worker, float]) -> Report:
    return Report(version, version, 0, Histogram(), {}, frozenset(), {}, taken, norms, 0, 0)


def findings(dog: Watchdog) -> list[Finding]:
    found = []
    while (finding := dog.next_finding()) is not None:
        found.append(finding)
    return found


def test_a_run_that_learns_is_left_alone() -> None:
    dog, random = Watchdog(), np.random.default_rng(1)
    for step in range(1000):
        dog.loss(2.3 * 0.995**step + 0.1 * random.standard_normal())
        dog.activations("relu0", 0.4)
        dog.observe([report(3 * step, dict.fromkeys((A, B, C), step), {A: 1.0, B: 2.0, C: 0.5})])
    for _ in range(1000):  # having learned, it may stay where it is
        dog.loss(0.02)
    assert findings(dog) == []


def test_a_loss_that_is_flat_from_the_first_step() -> None:
    dog, random = Watchdog(), np.random.default_rng(1)
    for step in range(400):
        dog.loss(2.303 + 0.01 * random.standard_normal())
        assert bool(dog.active) == (step + 1 >= Limits().losses_min)
    (finding,) = findings(dog)
    assert finding.reason is Reason.FLAT_LOSS
    assert "as at the start (2.3" in finding.text
    for _ in range(50):
        dog.loss(1.5)
    assert not dog.active


def test_zero_gradients_of_all_workers() -> None:
    dog = Watchdog()
    for step in range(30):
        halves = [report(3 * step, dict.fromkeys((A, B, C), step), dict.fromkeys((A, B, C), 0.0)) for _ in range(2)]
        dog.observe(halves)
    (finding,) = findings(dog)
    assert finding.reason is Reason.ZERO_GRADIENTS
    dog.observe([replace(halves[0], norms={A: 0.1}), halves[1]])
    assert not dog.active


def test_one_shard_without_gradient_is_no_finding() -> None:
    dog = Watchdog()
    for step in range(100):
        taken = {A: step, B: step}
        dog.observe([report(2 * step, taken, {A: 0.0, B: 0.0}), report(2 * step, taken, {A: 1.0, B: 1.0})])
    assert findings(dog) == []


def test_dead_activations_name_the_layer() -> None:
    dog = Watchdog()
    for live in (0.0, 0.0, 0.5, 0.0, 0.0):
        dog.activations("relu1", live)
    assert findings(dog) == []
    dog.activations("relu1", 0.0)
    dog.activations("relu1", 0.0)
    (finding,) = findings(dog)
    assert (finding.reason, finding.what) == (Reason.DEAD_ACTIVATIONS, "relu1")
    dog.activations("relu1", 0.3)
    assert not dog.active


def test_a_worker_that_contributes_nothing_is_named_with_why() -> None:
    silent, zero, refused = Watchdog(), Watchdog(), Watchdog()
    for step in range(30):
        norms = {A: 1.0, B: 1.0, C: 1.0}
        silent.observe([report(2 * step, {A: step, B: step, C: min(step, 3)}, norms)])
        zero.observe([report(3 * step, {A: step, B: step, C: step}, norms | {C: 0.0})])
        bad = report(2 * step, {A: step, B: step, C: 0}, {A: 1.0, B: 1.0})
        refused.observe([replace(bad, refused={(C, Refusal.NOT_FINITE): step})])
    for dog, why in ((silent, "it is silent"), (zero, "its gradients are zero"), (refused, "pushes were refused")):
        (finding,) = findings(dog)
        assert (finding.reason, finding.what) == (Reason.IDLE_WORKER, C.node)
        assert why in finding.text
    silent.observe([report(70, {A: 31, B: 31, C: 4}, {A: 1.0, B: 1.0, C: 1.0})])
    assert not silent.active
