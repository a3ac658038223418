"""The measurement keeps its time and its figures are of this world."""

from __future__ import annotations

import time

import pytest
import threadpoolctl

from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor import measure as measuring
from p2pnn.executor.measure import cores, machine, measure
from p2pnn.plan.profile import decode, encode


def test_a_measurement_is_quick_and_plausible() -> None:
    start = time.perf_counter()
    profile = measure(0.2)
    assert time.perf_counter() - start < 2.0  # 0.2 on an idle machine
    assert 0.1 < profile.gemm_gflops < 5000
    assert 0.1 < profile.conv_gflops < 5000
    assert 1e8 < profile.bytes_per_s < 1e12
    assert 1e-8 < profile.overhead_s < 1e-2
    assert profile.memory_bytes_max >= 0
    assert (profile.node, profile.name, profile.threads) == ("", "", 1)
    assert profile.cores == cores() >= 1
    with threadpoolctl.threadpool_limits(1):
        assert profile.fingerprint == NumpyEngine().fingerprint()
    assert decode(encode(profile)) == profile


def test_the_machine_is_the_same_each_time_and_tells_nothing() -> None:
    assert machine() == machine()
    assert len(machine()) == 16
    assert set(machine()) <= set("0123456789abcdef")


def test_the_best_of_several_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 5.0, 5.1, 6.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert measuring._best(lambda: None, 7.0) == pytest.approx(0.9)
