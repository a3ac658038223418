"""Local search: branches may part when that pays, chains stay whole, limits hold."""

from __future__ import annotations

from p2pnn.plan.cost import Workload, limits, memory_bytes
from p2pnn.plan.partition import Cut, best_cuts
from p2pnn.plan.predict import predict
from p2pnn.plan.search import Choice, choose, improve

from .builder import branched, job, mesh, mlp, node


def test_branches_of_a_block_part_when_that_is_faster() -> None:
    """With one micro-batch there is no pipeline: only running two branches at once gains anything.

    The stem lies alone on a, because a segment sends when all of it is done.
    """
    work = Workload(job(branched(channels=32, blocks=1, extent=24), micro_batches=1, batch_size=16))
    nodes = [node(n) for n in "abc"]
    links = mesh(*nodes, bytes_per_s=1e11)
    start = tuple(0 if n < 1 else 1 if n < 4 else 2 for n in range(work.count))
    before = predict(work, start, nodes, links, 1)
    choice = choose(work, [Cut((0, 1, 2), start, 0.0)], nodes, links, 1, {}, 0)
    place = {op.name: choice.assignment[i] for i, op in enumerate(work.graph.ops)}
    assert place["block0/left"] != place["block0/right"]
    assert choice.prediction.step_s < 0.7 * before.step_s


def test_a_chain_stays_contiguous_and_the_result_repeats() -> None:
    work = Workload(job(mlp(*[200] * 7, features=200)))
    nodes = [node("a", 0.7), node("b"), node("c", 1.3)]
    cuts = best_cuts(work, nodes, mesh(*nodes), 3, 3, {}, keep=3)
    choice = choose(work, cuts, nodes, mesh(*nodes), 3, {}, 0)
    assert list(choice.assignment) == sorted(choice.assignment)
    assert choice == choose(work, cuts, nodes, mesh(*nodes), 3, {}, 0)


def test_fixed_ops_and_memory_limits_are_kept() -> None:
    work = Workload(job(branched(channels=32, blocks=1, extent=24), micro_batches=1, batch_size=16))
    links = mesh(node("a"), node("b"), node("c"), bytes_per_s=1e11)
    start = [0 if n < 1 else 1 if n < 4 else 2 for n in range(work.count)]

    def improved(memory: int, fixed: frozenset[int]) -> Choice:
        nodes = (node("a"), node("b"), node("c", memory=memory))
        return improve(work, Choice(nodes, tuple(start), 1, predict(work, start, nodes, links, 1)), links, fixed, 0)

    free = improved(1 << 34, frozenset())
    assert free.assignment != tuple(start)
    assert improved(1 << 34, frozenset(range(work.count))).assignment == tuple(start)
    used = memory_bytes(work, start, 2, 1)
    tight = improved(used, frozenset())
    assert all(memory_bytes(work, tight.assignment, n, 1) <= r for n, r in enumerate(limits(tight.profiles)))
    assert memory_bytes(work, free.assignment, 2, 1) > used
