"""What lives when: kept values, memory that in-place ops hand on, and what gradients need again."""

from __future__ import annotations

from p2pnn.model.flow import Flow
from p2pnn.plan.buffers import GAPS, Lifetimes, keeps, wants
from p2pnn.plan.cost import Workload

from .builder import job, mlp


def lifetimes(training: bool) -> Lifetimes:
    work = Workload(job(mlp(32, 32)))
    return Lifetimes(work.graph, work.flow, work.active, work.value_bytes, training=training)


def test_training_keeps_what_gradients_read_and_an_evaluation_nothing() -> None:
    work = Workload(job(mlp(32, 32)))
    names = {op.name: i for i, op in enumerate(work.graph.ops)}
    kept = lifetimes(True).kept
    assert kept[names["relu0"]] == kept[names["relu1"]] == 16 * 32 * 4
    assert kept[names["fc0"]] == 0  # relu0 lies over it
    assert not lifetimes(False).kept.any()


def test_an_op_in_place_adds_no_memory() -> None:
    work = Workload(job(mlp(32, 32)))
    names = {op.name: i for i, op in enumerate(work.graph.ops)}
    live = lifetimes(False).live
    one = GAPS * (16 * 32 * 4 + 64)
    assert live[names["fc0"]] == live[names["relu0"]] == one
    assert live[names["fc1"]] == 2 * one


def test_only_what_is_trained_wants_gradients() -> None:
    graph = mlp(32)
    flow = Flow(graph)
    names = {op.name: i for i, op in enumerate(graph.ops)}
    assert wants(graph, flow, names["fc0"]) == (False, True)
    assert wants(graph, flow, names["head"]) == (True, True)
    assert wants(graph, flow, names["loss"]) == (True, False)
    assert keeps(graph, flow, names["fc0"]) == {"x"}
    assert keeps(graph, flow, names["loss"]) == {"y"}
    assert keeps(graph, flow, names["softmax"]) == set()
