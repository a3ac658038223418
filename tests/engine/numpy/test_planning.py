from __future__ import annotations

import random

import pytest

from p2pnn.engine.numpy.planning import Buffer, Plan, _overlay
from tests.engine.numpy.build import Run
from tests.engine.numpy.networks import NETWORKS


def overlapping(a: Buffer, b: Buffer) -> bool:
    apart_in_time = a.end < b.start or b.end < a.start
    return not apart_in_time and a.offset < b.offset + b.nbytes and b.offset < a.offset + a.nbytes


def buffers(plan: Plan) -> list[Buffer]:
    return list({id(p.buffer): p.buffer for p in plan.places if p.buffer is not None}.values())


def test_buffers_that_live_together_never_overlap() -> None:
    rng = random.Random(1)
    for _ in range(200):
        starts = [rng.randrange(30) for _ in range(25)]
        made = [Buffer(rng.randrange(1, 5000), s, s + rng.randrange(8)) for s in starts]
        total = _overlay(made, [], 0)
        assert not any(overlapping(a, b) for i, a in enumerate(made) for b in made[:i])
        assert max(b.offset + b.nbytes for b in made) <= total < sum(b.nbytes + 64 for b in made)


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_of_networks_do_not_overlap_and_save_memory(name: str) -> None:
    graph = NETWORKS[name]()
    plan = Run(graph, [0] * len(graph.ops), rows=16).programs[0]._plan
    every = buffers(plan)
    turn = len(plan.forward)
    for own in (True, False):
        group = [b for b in every if b.own is own]
        assert all(b.start < turn <= b.end for b in group if b.kept)
        assert own or not any(b.kept for b in group)
        size = plan.kept_bytes if own else plan.shared_bytes
        assert all(b.offset + b.nbytes <= size for b in group)
        assert not any(overlapping(a, b) for i, a in enumerate(group) for b in group[:i])
    assert any(b.own and not b.kept for b in every)
    assert plan.shared_bytes < sum(b.nbytes for b in every if not b.own)


def test_what_one_call_needs_lies_where_its_frame_holds_nothing_then() -> None:
    kept = [Buffer(100, 0, 9, True, True, 0), Buffer(200, 2, 7, True, True, 128), Buffer(64, 4, 5, True, True, 384)]
    early, late, wide, turn = Buffer(200, 0, 1), Buffer(200, 8, 9), Buffer(400, 8, 8), Buffer(60, 4, 5)
    shared = _overlay([early, late, wide, turn], kept, 448)
    assert [b.own for b in (early, late, wide, turn)] == [True, True, False, False]
    assert early.offset == late.offset == 128
    assert wide.offset == turn.offset == 0
    assert shared == 448


def test_work_in_place_shares_a_buffer() -> None:
    graph = NETWORKS["lenet"]()
    plan = Run(graph, [0] * len(graph.ops), rows=16).programs[0]._plan
    place = {p.register: p.buffer for p in plan.places}
    convolution, relu = plan.forward[:2]
    assert place[convolution.ys[0]] is place[relu.ys[0]]
    flatten = next(f for f in plan.forward if f.kernel.site.op.kind == "Flatten")
    assert place[flatten.inputs[0]] is not place[flatten.ys[0]]
