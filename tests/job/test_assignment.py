"""Who has which role in a start: at its beginning, behind losses, by primaries' wishes; what is over, and what is stale."""

from __future__ import annotations

import random

import msgspec
import pytest

from p2pnn.errors import CheckpointError
from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment, committed, initial, without
from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.replication.configuration import Configuration, Member, demoted, may_follow, promoted, removed
from p2pnn.replication.holding import Shard
from p2pnn.replication.outcomes import Propose, Received
from p2pnn.replication.replica import Replica as ReplicaOf
from p2pnn.types import NodeId
from p2pnn.wire.messages import Appended
from tests.job.test_supervisor import make_spec

START = 7


def make_plan(workers: tuple[tuple[int, ...], ...], homes: tuple[tuple[int, ...], ...], nodes: int = 4) -> Plan:
    shares = tuple(NodeShare(NodeId(f"{n:032x}"), f"n{n}", "", 1, 1, 2, 0.1) for n in range(nodes))
    return Plan(shares, (), 1, 1.0, 1.0, replicas=tuple(map(Replica, workers)), shards=tuple(map(ShardHome, homes)))


def spec_of(consistency: str) -> JobSpec:
    return msgspec.structs.replace(make_spec(), data=DataParallel(consistency=consistency))


def nodes_of(shard: Configuration) -> list[int]:
    return [int(member.node, 16) for member in shard.in_sync]


PLAN = make_plan(((0,), (1,), (2,)), ((0, 1), (1, 2), (3, 0)))
ASYNC = spec_of("async")


def test_a_start_begins_as_the_plan_has_it_with_its_generation_as_everybodys_incarnation() -> None:
    first = initial(PLAN, START)
    assert [nodes_of(shard) for shard in first.shards] == [[0, 1], [1, 2], [3, 0]]
    assert {member.incarnation for shard in first.shards for member in shard.members} == {START}
    assert {(shard.generation, shard.copies) for shard in first.shards} == {(START, 2)}
    assert [assignment.primary_of(first, PLAN, shard) for shard in range(3)] == [0, 1, 3]
    assert first.version == (START, 0)
    assignment.check(first, PLAN)


def test_a_plan_without_replicas_of_its_shards_survives_the_loss_of_who_holds_none() -> None:
    alone = make_plan(((0,), (1,), (3,)), ((0,), (2,)))
    first = initial(alone, START)
    assert first == Assignment()
    assert assignment.primary_of(first, alone, 1) == 2
    assert [without(first, alone, ASYNC, node) for node in (0, 2)] == [None] * 2
    assert [without(first, alone, spec_of("sync"), node) for node in range(4)] == [None] * 4
    one = without(first, alone, ASYNC, 1)
    assert one == Assignment((), (1,))
    held = committed(first, one, 9)
    two = without(held, alone, ASYNC, 3)
    assert two == Assignment((), (1, 3))
    assert first.version < held.version < two.version
    assert without(held, alone, ASYNC, 1) == held
    assignment.check(two, alone)
    assert without(initial(make_plan(((1,),), ((0,),)), START), make_plan(((1,),), ((0,),)), ASYNC, 1) is None
    assert [assignment.may_lose(alone, spec_of(how)) for how in ("ssp:1", "local:2")] == [True, False]
    assert [assignment.is_spare(held, alone, node) for node in range(4)] == [False, True, False, True]
    assert [assignment.is_spare(initial(PLAN, 1), PLAN, node) for node in range(4)] == [True] * 4
    model = make_plan((), ())
    assert initial(model, START) == Assignment()
    assert without(Assignment(), model, make_spec(), 0) is None


def test_a_lost_primary_is_succeeded_by_its_backup_and_a_lost_backup_leaves() -> None:
    before = initial(PLAN, START)
    after = without(before, PLAN, ASYNC, 0)
    assert after is not None
    after = committed(before, after, 9)
    assert [nodes_of(shard) for shard in after.shards] == [[1], [1, 2], [3]]
    assert [shard.generation for shard in after.shards] == [9, START, 9], "only what changed is of this commit"
    assert [shard.copies for shard in after.shards] == [2, 2, 2], "what is wished stays"
    assert after.gone == (0,)
    assert assignment.gone_workers(after.gone, PLAN) == (0,)
    assert after.version > before.version
    assert without(after, PLAN, ASYNC, 0) is after, "it is lost once"


def test_a_loss_that_takes_the_last_replica_in_sync_ends_the_start_even_where_a_learner_is_left() -> None:
    before = initial(PLAN, START)
    shard = before.shards[0]
    learning = assignment.wished(before, 0, demoted(shard, shard.in_sync[1]))
    assert learning is not None
    assert learning.shards[0].learners == (Member(PLAN.nodes[1].node, START),)
    assert without(learning, PLAN, ASYNC, 0) is None
    assert without(learning, PLAN, ASYNC, 2) is not None


@pytest.mark.parametrize(
    ("consistency", "worker", "server"),
    [("async", True, True), ("ssp:3", True, True), ("sync", False, True), ("local:4", False, True)],
)
def test_a_worker_can_be_lost_where_batches_are_leased_and_one_that_only_serves_always(
    consistency: str, worker: bool, server: bool
) -> None:
    spec, before = spec_of(consistency), initial(PLAN, START)
    assert (without(before, PLAN, spec, 2) is not None) is worker
    assert (without(before, PLAN, spec, 3) is not None) is server


def test_the_last_worker_cannot_be_lost() -> None:
    two = make_plan(((0,), (1,)), ((2, 3),))
    after = without(initial(two, START), two, ASYNC, 0)
    assert after is not None
    assert without(after, two, ASYNC, 1) is None
    assert without(after, two, ASYNC, 3) is not None


def test_a_worker_that_is_cut_is_lost_with_any_of_its_nodes() -> None:
    cut = make_plan(((0, 1), (2,)), ((1, 2), (2, 3)))
    after = without(initial(cut, START), cut, ASYNC, 1)
    assert after is not None
    assert assignment.gone_workers(after.gone, cut) == (0,), "a replica needs all of its nodes"
    assert without(initial(cut, START), cut, spec_of("sync"), 1) is None
    assert without(initial(cut, START), cut, spec_of("sync"), 3) is not None
    rest = without(after, cut, ASYNC, 0)
    assert rest is not None, "what is left of it holds no shard alone"
    assert assignment.gone_workers(rest.gone, cut) == (0,)
    assert without(rest, cut, ASYNC, 2) is None, "the last worker"


def test_a_primary_has_a_backup_demoted_promoted_and_removed() -> None:
    held = initial(PLAN, START)
    backup = held.shards[0].in_sync[1]
    for number, change in enumerate((demoted, promoted, removed)):
        before = held
        proposal = change(before.shards[0], backup)
        after = assignment.wished(before, 0, proposal)
        assert after is not None
        held = committed(before, after, 20 + number)
        if change is removed:  # its node is a member: it may catch up again
            proposal = proposal.replaced(proposal.in_sync, (backup,))
        assert held.shards[0] == msgspec.structs.replace(proposal, generation=20 + number)
        assert held.shards[1:] == before.shards[1:]
        assert held.version == (20 + number, 0)
        assert assignment.wished(held, 0, proposal) is None, "it is made from one that holds no more"


def test_no_wish_brings_in_a_stranger_or_changes_what_it_may_not() -> None:
    held = initial(PLAN, START)
    shard = held.shards[0]
    stranger = Member(PLAN.nodes[3].node, START)
    assert assignment.wished(held, 3, shard) is None
    assert assignment.wished(Assignment(), 0, shard) is None
    assert assignment.wished(held, 0, shard.replaced(shard.in_sync, (stranger,))) is None
    assert assignment.wished(held, 0, msgspec.structs.replace(shard, copies=1)) is None
    after = without(held, PLAN, ASYNC, 1)
    assert after is not None
    late = committed(held, after, 9)
    assert assignment.wished(late, 0, demoted(shard, shard.in_sync[1])) is None, "the loss was committed first"


def test_a_wish_for_what_holds_begins_a_generation_in_which_no_earlier_one_counts() -> None:
    held = initial(PLAN, START)
    shard = held.shards[0]
    after = assignment.wished(held, 0, shard)
    assert after is not None
    again = committed(held, after, 9)
    assert again.shards == (msgspec.structs.replace(shard, generation=9), *held.shards[1:])
    assert again.version > held.version, "so that whoever is told takes it"
    assert assignment.wished(again, 0, demoted(shard, shard.in_sync[1])) is None
    assert assignment.wished(again, 0, shard) is None, "it counts once"


def test_a_learner_that_is_to_be_removed_stays_one_while_its_node_is_there() -> None:
    held = initial(PLAN, START)
    shard = held.shards[0]
    after = assignment.wished(held, 0, demoted(shard, shard.in_sync[1]))
    assert after is not None
    learning = committed(held, after, 9)
    silent = learning.shards[0].learners[0]
    after = assignment.wished(learning, 0, removed(learning.shards[0], silent))
    assert after is not None
    assert after.shards[0].learners == (silent,)
    gone = without(committed(learning, after, 10), PLAN, ASYNC, 1)
    assert gone is not None
    assert gone.shards[0].learners == ()


def test_a_learner_that_gets_slow_before_it_is_ready_holds_nobody_up_for_long() -> None:
    """The primary waits for a learner that it has chosen; two updates behind, it is not ready; then it gets no further."""
    primary, learner = Member("a" * 32, START), Member("b" * 32, START)
    held = Assignment((Configuration(START, 2, (primary,), (learner,)),))
    replica = ReplicaOf(Shard("j", 0), primary, 0.0)
    replica.configured(held.shards[0], 0.0)
    now, pushed, has, committed_at, longest = 0.0, 0, 0, 0.0, 0.0
    for _ in range(400):
        now += 0.02
        generation = held.shards[0].generation
        if replica.is_serving and pushed < replica.ordered(7) + 2:
            pushed += 1
            replica.arrived(7, pushed, 0, 4, b"abcd", now)
        if not replica.is_waited_for(learner.id) and now < 2:
            has = max(0, replica.log.last - 2)
        before = replica.committed
        told = Appended("j", 0, generation, START, has, min(has, replica.committed))
        replica.receive(learner.id, told, now)
        replica.handle_timer(now)
        while (event := replica.next_event()) is not None:
            if isinstance(event, Received):
                replica.accept(event.worker, event.sequence, now)
            elif isinstance(event, Propose):
                after = assignment.wished(held, 0, event.configuration)
                held = committed(held, after, generation + 1) if after is not None else held
                replica.configured(held.shards[0], now)
        replica.messages_to_send(now)
        longest = max(longest, now - committed_at)
        committed_at = now if replica.committed > before else committed_at
    assert held.shards[0].generation > START, "it was waited for, and then no more"
    assert longest < 2.0


def test_any_order_of_losses_and_wishes_is_a_chain_of_configurations_that_may_follow() -> None:
    for seed in range(200):
        dice = random.Random(seed)
        held, generation = initial(PLAN, START), START
        for _ in range(8):
            if dice.random() < 0.4:
                after = without(held, PLAN, ASYNC, dice.randrange(4))
                if after is None:
                    continue
            else:
                number = dice.randrange(3)
                shard = held.shards[number]
                change = dice.choice((demoted, promoted, removed))
                members = shard.learners if change is promoted else shard.in_sync[1:]
                wish = change(shard, dice.choice(members)) if members else shard
                after = assignment.wished(held, number, wish)
                if after is None:
                    continue
            for old, new in zip(held.shards, after.shards, strict=True):
                assert may_follow(old, msgspec.structs.replace(new, generation=old.generation))
            generation += 1
            newer = committed(held, after, generation)
            assert newer.version > held.version or newer == held
            assert set(newer.gone) >= set(held.gone)
            gone = {PLAN.nodes[index].node for index in newer.gone}
            assert all(member.node not in gone for shard in newer.shards for member in shard.members)
            assignment.check(newer, PLAN)
            held = newer


def test_it_travels_and_what_is_none_is_refused_in_a_sentence() -> None:
    held = committed(initial(PLAN, START), initial(PLAN, START), 8)
    assert assignment.decode(assignment.encode(held)) == held
    shard = held.shards[1]
    assert assignment.decode_configuration(assignment.encode_configuration(shard)) == shard
    for data in (b"", b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode([[], [-1]]), msgspec.msgpack.encode([[[1]], []])):
        with pytest.raises(CheckpointError, match="cannot be read"):
            assignment.decode(data)
        with pytest.raises(CheckpointError, match="cannot be read"):
            assignment.decode_configuration(data)
    stranger = shard.replaced((Member("f" * 32, START),), ())
    others = [
        Assignment(),
        Assignment(held.shards[1:]),
        Assignment(held.shards, (4,)),
        Assignment((stranger, *held.shards[1:])),
    ]
    for other in others:
        with pytest.raises(CheckpointError, match="another plan"):
            assignment.check(other, PLAN)
