"""A cut that comes with the job: taken as it is, on the nodes where it is fastest, or refused with its reason."""

from __future__ import annotations

import pytest

from p2pnn.errors import PlanError
from p2pnn.job.plan import cut as word
from p2pnn.job.spec import Pin
from p2pnn.plan.planner import plan

from .builder import branched, job, mesh, mlp, node

NODES = [node("a", 0.5), node("b"), node("c", 2.0)]
GRAPH = mlp(64, 64, 64)
HALVES = tuple(int(i >= 2) for i in range(len(GRAPH.ops)))
THIRDS = tuple((i >= 2) + (i >= 5) for i in range(len(GRAPH.ops)))


@pytest.mark.parametrize("schedule", ["sync", "async:3"])
@pytest.mark.parametrize("cut", [HALVES, THIRDS])
def test_it_is_taken_as_it_is(cut: tuple[int, ...], schedule: str) -> None:
    spec = job(GRAPH, micro_batches=1, schedule=schedule, cut=cut)
    made = plan(spec, NODES, mesh(*NODES))
    assert made.assignment == cut
    assert not any("take part" in reason for reason in made.reasons)
    assert word(spec, made) == word(spec, plan(spec, NODES[::-1], mesh(*NODES)))
    assert bool(word(spec, made)) == (schedule != "sync")


def test_the_larger_part_goes_to_the_faster_node() -> None:
    made = plan(job(GRAPH, cut=HALVES), NODES[:2], mesh(*NODES))
    assert [share.name for share in made.nodes] == ["a", "b"]
    turned = plan(job(GRAPH, cut=tuple(int(i >= 6) for i in range(len(GRAPH.ops)))), NODES[:2], mesh(*NODES))
    assert [share.name for share in turned.nodes] == ["b", "a"]


def test_pins_are_kept() -> None:
    made = plan(job(GRAPH, cut=HALVES, pins=(Pin("fc0", "b"),)), NODES[:2], mesh(*NODES))
    assert [share.name for share in made.nodes] == ["b", "a"]
    with pytest.raises(PlanError, match=r"no nodes have room for the parts of the job's cut.*leave cut out"):
        plan(job(GRAPH, cut=HALVES, pins=(Pin("fc0", "b"), Pin("fc1", "b"))), NODES, mesh(*NODES))


def test_among_many_nodes_pins_and_room_decide_first() -> None:
    many = [node(name) for name in "abcdefgh"]
    made = plan(job(GRAPH, cut=THIRDS, pins=(Pin("fc0", "h"), Pin("fc2", "g"))), many, mesh(*many))
    assert [share.name for share in made.nodes[:2]] == ["h", "g"]
    small = [node(name, memory=1000) for name in "abcde"] + [node(name) for name in "fgh"]
    assert {share.name for share in plan(job(GRAPH, cut=THIRDS), small, mesh(*small)).nodes} == set("fgh")
    fast = [*many, node("i", 9.0)]
    assert "i" in {share.name for share in plan(job(GRAPH, cut=THIRDS), fast, mesh(*fast)).nodes}


def test_a_search_that_finds_no_room_ends() -> None:
    crowd = [node(f"n{number}", memory=40_000, machine="one") for number in range(40)]
    with pytest.raises(PlanError, match="no nodes have room for the parts"):
        plan(job(GRAPH, cut=THIRDS), crowd, mesh(*crowd))


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        (HALVES[1:], "has 9 numbers from 0 to 1, but this model has 10 ops"),
        ((*HALVES[:-1], 3), "has 10 numbers from 0 to 3, but this model has 10 ops, and nodes count 0, 1"),
        ((*HALVES[:-1], -1), "has 10 numbers from -1 to 1"),
        (tuple(range(10)), "is over 10 nodes, but there are 3; start more, or leave cut out"),
    ],
)
def test_what_is_no_cut_of_the_model_is_refused(cut: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        plan(job(GRAPH, cut=cut), NODES, mesh(*NODES))


def test_ops_that_share_a_parameter_are_not_parted() -> None:
    graph = branched(8, 1)
    shared = graph.ops[0].inputs[1]
    first = graph.ops[2]
    twice = first.__class__(
        first.kind, first.name, (first.inputs[0], shared, *first.inputs[2:]), first.outputs, first.attributes
    )
    ops = tuple(twice if op is first else op for op in graph.ops)
    graph = graph.__class__(**{f: getattr(graph, f) for f in graph.__struct_fields__} | {"ops": ops})
    cut = tuple(int(i >= 1) for i in range(len(ops)))
    with pytest.raises(PlanError, match="parts the ops of"):
        plan(job(graph, cut=cut), NODES, mesh(*NODES))


def test_too_small_nodes_are_told() -> None:
    small = [node("a", memory=1000), node("b", memory=1000)]
    with pytest.raises(PlanError, match="no nodes have room for the parts"):
        plan(job(GRAPH, cut=HALVES), small, mesh(*small))
