"""Predicted samples/s of data parallelism: which of all times a round takes, and what changes it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pnn.job.spec import JobSpec
from p2pnn.plan.cost import Links, Workload
from p2pnn.plan.hybrid import choose
from p2pnn.plan.pace import CutPasses, Pace, pace
from p2pnn.plan.profile import Link, Profile
from p2pnn.plan.roles import pass_s

from .builder import mesh, mlp, node
from .dealt import ABC, ABCD, dealt, exchanged, placed

BIG = mlp(1000, 1000)
BYTES = 4 * sum(p.size for p in BIG.parameters)
FAST = 1e12


def paced(
    spec: JobSpec,
    nodes: list[Profile] = ABC,
    workers: tuple[int, ...] = (0, 1, 2),
    shards: int = 1,
    links: Links | None = None,
) -> Pace:
    links = links or mesh(*nodes)
    return pace(Workload(spec), spec, exchanged(spec, shards), placed(spec, nodes, workers, shards, links), links)


def over(bytes_per_s: float, nodes: list[Profile] = ABC) -> Links:
    return mesh(*nodes, bytes_per_s=bytes_per_s)


def test_where_nothing_else_counts_workers_add_up() -> None:
    spec = dealt(BIG)
    one = paced(spec, ABCD, (0,), 1, over(FAST, ABCD))
    three = paced(spec, ABCD, (0, 1, 2), 1, over(FAST, ABCD))
    assert (one.bound.kind, three.bound.kind) == ("compute", "own")
    assert three.samples_per_s == pytest.approx(3 * one.samples_per_s)
    assert one.passes_s[0] == pytest.approx(pass_s(Workload(spec), ABC[0]))
    assert one.samples_per_s < 64 / one.passes_s[0], "gradients are handed over besides"


def test_the_link_of_the_shard_carries_all_workers() -> None:
    """W × bytes / bandwidth is the bottleneck of one shard; with two on two nodes it is half of that."""
    slow = 1e6
    one = paced(dealt(BIG), ABCD, (0, 1, 2), 1, over(slow, ABCD))
    assert one.bound.kind == "link"
    assert one.step_s == pytest.approx(3 * BYTES / slow)
    assert one.samples_per_s == pytest.approx(3 * 64 / one.step_s)
    nodes = [*ABCD, node("e")]
    two = paced(dealt(BIG), nodes, (0, 1, 2), 2, over(slow, nodes))
    assert two.step_s == pytest.approx(one.step_s / 2, rel=0.01)


def test_a_shard_beside_a_worker_has_one_less_on_its_link() -> None:
    found = paced(dealt(BIG), ABC, (0, 1, 2), 1, over(1e6))
    assert found.step_s == pytest.approx(2 * BYTES / 1e6)


@pytest.mark.parametrize(
    ("changes", "factor"), [({"n_push": 4, "n_fetch": 4}, 4.0), ({"push": "bf16", "pull": "bf16"}, 2.0)]
)
def test_over_a_slow_link_less_is_faster(changes: dict[str, Any], factor: float) -> None:
    plain = paced(dealt(BIG), links=over(1e5))
    assert paced(dealt(BIG, **changes), links=over(1e5)).samples_per_s == pytest.approx(
        factor * plain.samples_per_s, rel=0.01
    )


def test_the_busier_direction_counts() -> None:
    halves = paced(dealt(BIG, push="bf16"), ABCD, (0, 1, 2), 1, over(1e5, ABCD))
    assert halves.step_s == pytest.approx(3 * BYTES / 1e5), "fetches are as large as before"


def test_where_workers_wait_all_end_with_the_slowest() -> None:
    nodes = [node("a"), node("b", 0.25), node("c")]
    found = paced(dealt(BIG, consistency="ssp:2"), nodes, links=over(FAST, nodes))
    assert (found.bound.kind, found.bound.node) == ("compute", 1)
    assert found.samples_per_s == pytest.approx(3 * 64 / found.step_s)
    assert found.step_s > found.passes_s[1] > 3 * found.passes_s[0]


def test_of_leased_batches_each_takes_as_many_as_it_can() -> None:
    nodes = [node("a"), node("b", 0.25), node("c")]
    found = paced(dealt(BIG), nodes, links=over(FAST, nodes))
    alone = [paced(dealt(BIG), [one], (0,), 1, over(FAST, [one])).samples_per_s for one in nodes]
    assert (found.bound.kind, found.bound.node) == ("own", 1)
    assert found.samples_per_s == pytest.approx(sum(alone), rel=0.01)
    slow = paced(dealt(BIG), [*nodes, node("d")], links=over(1e6, [*nodes, node("d")]))
    assert slow.step_s == pytest.approx(3 * BYTES / 1e6), "what all share holds them as ever"


def test_sync_shares_a_batch_and_waits() -> None:
    spec = dealt(BIG, micro_batches=4, consistency="sync")
    found = paced(spec, ABCD, (0, 1), 1, over(FAST, ABCD))
    assert found.passes_s[0] == pytest.approx(2 * pass_s(Workload(spec), ABC[0])), "half of the four micro-batches"
    assert found.samples_per_s == pytest.approx(64 / found.step_s)
    slow = paced(spec, ABCD, (0, 1), 1, over(1e6, ABCD))
    assert slow.bound.kind == "link"
    assert slow.step_s == pytest.approx(found.step_s + 2 * 2 * BYTES / 1e6, rel=0.01), "pushes, then fetches, of both"
    asynchronous = dealt(BIG, micro_batches=4)
    assert paced(asynchronous, ABCD, (0, 1), 1, over(1e6, ABCD)).samples_per_s > 2 * slow.samples_per_s


def test_backup_does_not_wait_for_the_slowest_and_does_not_count_its_rows() -> None:
    nodes = [node("a"), node("b", 0.1), node("c"), node("d")]
    every = paced(dealt(BIG, micro_batches=4, consistency="sync"), nodes, (0, 1, 2, 3), 1, over(FAST, nodes))
    three = paced(dealt(BIG, micro_batches=4, consistency="sync", backup=1), nodes, (0, 1, 2, 3), 1, over(FAST, nodes))
    assert every.bound.node == 1
    assert three.bound.node != 1
    assert three.samples_per_s == pytest.approx(0.75 * 64 / three.step_s)
    assert three.samples_per_s > 3 * every.samples_per_s


def test_ssp_waits_for_its_answers_and_async_does_not() -> None:
    links = over(3e7, ABCD)
    asynchronous = paced(dealt(BIG), ABCD, (0, 1), 1, links)
    ssp = paced(dealt(BIG, consistency="ssp:3"), ABCD, (0, 1), 1, links)
    trip = 2 * BYTES / 3e7
    assert ssp.step_s > asynchronous.step_s
    assert ssp.step_s > trip + ssp.passes_s[0]


def test_local_steps_share_a_round_among_them() -> None:
    few, many = (paced(dealt(BIG, consistency=f"local:{h}"), links=over(1e6)) for h in (2, 16))
    assert many.samples_per_s > 3 * few.samples_per_s
    assert few.bound.kind == "link"


def test_a_push_is_answered_when_its_backup_has_it() -> None:
    """In every kind that waits: what is between a primary and its backup, there and back, is in each round."""

    def round_s(consistency: str, latency_s: float) -> float:
        spec, links = dealt(BIG, consistency=consistency, micro_batches=2), dict(over(1e9, ABCD))
        roles = placed(spec, ABCD, (0, 1), 1, links, 2)
        home, backup = (roles.nodes[at[0]].node for at in (roles.homes, roles.backups))
        assert min(roles.homes[0], roles.backups[0]) >= roles.workers, "no worker is on their links"
        for pair in ((home, backup), (backup, home)):
            links[pair] = Link(links[pair].bytes_per_s, latency_s)
        return pace(Workload(spec), spec, exchanged(spec, 1), roles, links).step_s

    for consistency, steps in (("ssp:1", 1), ("sync", 1), ("local:2", 2)):
        near, far = (round_s(consistency, latency_s) for latency_s in (0.0, 0.5))
        assert far - near == pytest.approx(2 * 0.5 / steps), consistency


def test_values_between_the_nodes_of_a_worker_are_on_the_links_that_pushes_take() -> None:
    spec = msgspec.structs.replace(dealt(BIG, segments=2, workers=2), parallel="hybrid")
    links, work = over(1e6, ABCD), Workload(spec)
    found = choose(work, spec, ABCD, links)

    def with_sent(sent_s: float) -> Pace:
        passes = CutPasses((1e-3,) * 2, (1e-3,) * 4, (0.0,) * 4, (sent_s,) * 4)
        return pace(work, spec, found.there, found.roles, links, passes)

    alone, together = with_sent(0.0), with_sent(7.0)
    assert alone.bound.kind == together.bound.kind == "link"
    assert together.step_s == pytest.approx(alone.step_s + 7.0)


def test_workers_of_one_machine_share_its_cores() -> None:
    apart = paced(dealt(BIG), links=over(FAST))
    together = [node(name, machine="m", cores=2) for name in "abc"]
    found = paced(dealt(BIG), together, links=over(FAST, together))
    assert found.bound.kind == "cores"
    assert found.step_s > 1.4 * apart.step_s
    roomy = [node(name, machine="m", cores=16) for name in "abc"]
    assert paced(dealt(BIG), roomy, links=over(FAST, roomy)).bound.kind == "own"


def test_small_networks_wait_for_messages() -> None:
    """A round trip takes what messages cost, however fast the links are."""
    small = dealt(mlp(8), batch_size=8)
    found = paced(small, links=over(FAST))
    assert found.bound.kind in ("trip", "cores", "shards")
    assert found.step_s > 2 * found.passes_s[0]


def test_the_same_arguments_the_same_floats() -> None:
    assert paced(dealt(BIG), shards=2) == paced(dealt(BIG), shards=2)


def test_a_backup_takes_each_push_once_more() -> None:
    """Over the primary's link out, and the backup's in; the answer waits until it is there."""
    slow = 1e6

    def with_copies(copies: int, **data: Any) -> Pace:
        spec = dealt(BIG, **data)
        roles = placed(spec, ABCD, (0, 1), 1, over(slow, ABCD), copies)
        return pace(Workload(spec), spec, exchanged(spec, 1), roles, over(slow, ABCD))

    one, two = with_copies(1), with_copies(2)
    assert one.step_s == pytest.approx(2 * BYTES / slow)
    assert two.step_s == pytest.approx(4 * BYTES / slow), "out of the primary: two answers, two pushes"
    for consistency in ("ssp:1", "sync", "local:2"):
        alone, copied = (with_copies(n, consistency=consistency, micro_batches=2) for n in (1, 2))
        assert copied.samples_per_s < alone.samples_per_s
