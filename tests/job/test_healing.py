"""When a run looks whether it could be stronger, what counts as that, and that it then moves without losing a step."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.job import assignment, life
from p2pnn.job.assignment import Assignment, committed, initial, without
from p2pnn.job.healing import AGAIN_S, HEAL_S, LEFT_S, Healing, not_rebuilt, stronger
from p2pnn.job.plan import Plan, Replica, ShardHome
from p2pnn.job.spec import DataParallel
from p2pnn.replication.configuration import demoted, removed
from p2pnn.types import NodeId
from tests.job.test_assignment import make_plan as plan_over
from tests.job.test_failover import NODES, Mesh, lost, make_job, make_plan
from tests.job.test_supervisor import make_spec


def degraded() -> Mesh:
    """A run that goes on without its node b, which is back."""
    mesh = Mesh(make_job(), 1)
    mesh.until(4)
    lost(mesh, 1)
    mesh.commit()
    mesh.take()
    mesh.away.clear()
    mesh.supervisor.member_joined(NODES[1], "b", mesh.now)
    mesh.take()
    return mesh


def test_a_run_that_lost_a_node_is_compared_once_things_are_quiet_and_moves_where_that_helps() -> None:
    mesh = degraded()
    due = mesh.supervisor.get_timer()
    assert due == mesh.now + HEAL_S
    mesh.supervisor.handle_timer(due - 0.1)
    mesh.take()
    assert mesh.compares == 0
    mesh.supervisor._run._pace.steps_per_s = 1.0
    mesh.supervisor.handle_timer(due)
    mesh.take()
    assert mesh.compares == 1
    mesh.supervisor.compared(make_plan(), due)
    mesh.take()
    text = "the job moves onto b as well: 3 workers instead of 2 and 2 replicas of each shard instead of 1"
    assert mesh.events[-2:] == [
        ("note", {"text": f"{text}, when the steps that are granted are done"}),
        ("state", {"state": "pausing", "reason": "pausing at the end of the granted steps"}),
    ]
    assert mesh.run().state == "recovering"
    assert (mesh.record.reason, mesh.replans) == (text, 1)
    assert mesh.record.newest is not None
    assert mesh.record.newest.step == mesh.trained, "no step is lost"
    mesh.supervisor.planned(make_plan(), mesh.now)
    mesh.supervisor.decided(mesh.generation + 1, mesh.now)
    assert mesh.supervisor.nodes == NODES
    assert mesh.supervisor.failover.assignment == initial(make_plan(), mesh.generation + 1)


def test_a_pause_that_a_person_asks_for_while_the_run_moves_is_one() -> None:
    mesh = degraded()
    mesh.supervisor.compared(make_plan(), mesh.now)
    mesh.take()
    assert mesh.record.state == "pausing"
    assert mesh.record.vacating
    assert not life.is_after("pausing", "pause", moves=True)
    mesh.supervisor.pause(mesh.now)
    mesh.take()
    assert life.is_after("pausing", "pause")
    assert mesh.run().state == "paused"
    assert mesh.record.newest is not None
    assert mesh.record.newest.step == mesh.trained
    assert mesh.replans == 0


def test_a_plan_that_is_no_stronger_changes_nothing_and_is_looked_for_again_later() -> None:
    mesh = degraded()
    mesh.supervisor._run._pace.steps_per_s = 1.0
    due = mesh.supervisor.get_timer()
    assert due is not None
    mesh.supervisor.handle_timer(due)
    mesh.take()
    assert mesh.compares == 1
    assert mesh.supervisor._healing.due == due + AGAIN_S
    plan = make_plan()
    weaker = msgspec.structs.replace(plan, replicas=plan.replicas[:2], shards=(ShardHome((0,)),) * 3)
    mesh.supervisor.compared(weaker, due)
    mesh.take()
    assert mesh.record.state == "running"
    assert mesh.run().state == "done"


def without_a_backup() -> Mesh:
    """A run of which shard 0 has lost its backup, though the backup's node is there."""
    mesh = Mesh(make_job(), 1)
    mesh.until(4)
    failover = mesh.supervisor.failover
    shard, *others = failover.assignment.shards
    alone = msgspec.structs.replace(failover.assignment, shards=(removed(shard, shard.in_sync[1]), *others))
    mesh.entry = committed(mesh.entry, alone, 9)
    failover._proposed = alone
    failover.reassigned(9, mesh.now)
    mesh.take()
    assert failover.assignment == mesh.entry
    assert not failover.gone
    return mesh


def test_a_run_that_lost_a_replica_and_no_node_is_compared_too_and_gets_it_back() -> None:
    mesh = without_a_backup()
    due = mesh.supervisor.get_timer()
    assert due == mesh.now + HEAL_S
    mesh.supervisor._run._pace.steps_per_s = 1.0
    mesh.supervisor.handle_timer(due)
    mesh.take()
    assert mesh.compares == 1
    assert mesh.supervisor._healing.due == due + AGAIN_S, "it is weaker than it was to be until it moves"
    mesh.supervisor.compared(make_plan(), due)
    mesh.take()
    assert mesh.record.vacating == "the job moves over a, b, c, d: 2 replicas of each shard instead of 1"
    assert mesh.run().state == "recovering"


def test_so_is_one_that_another_coordinator_takes_over() -> None:
    mesh = without_a_backup()
    mesh.die()
    assert not mesh.supervisor.failover.gone
    assert mesh.supervisor._healing.due == mesh.now + HEAL_S


def test_a_change_that_takes_no_replica_away_has_nothing_compared() -> None:
    mesh = Mesh(make_job(), 1)
    mesh.until(4)
    shard = mesh.supervisor.failover.assignment.shards[0]
    wish = assignment.encode_configuration(demoted(shard, shard.in_sync[1]))
    mesh.supervisor.failover.wish(NODES[0], 0, wish)
    mesh.take()
    mesh.commit()
    mesh.take()
    assert mesh.entry.shards[0].learners
    assert mesh.supervisor._healing.due is None, "the learner catches up, or its node is lost"


def test_a_run_that_is_nearly_over_pausing_or_changing_does_not_move() -> None:
    mesh = degraded()
    mesh.supervisor._run._pace.steps_per_s = 1000.0
    due = mesh.supervisor.get_timer()
    assert due is not None
    mesh.supervisor.handle_timer(due)
    mesh.take()
    assert mesh.compares == 0
    lost(mesh, 3)
    mesh.supervisor.compared(make_plan(), due)
    assert mesh.record.state == "running", "a change is under way"
    mesh.commit()
    mesh.take()
    mesh.supervisor.pause(mesh.now)
    mesh.take()
    mesh.supervisor.compared(make_plan(), due)
    assert mesh.record.vacating == ""
    timer = mesh.supervisor.get_timer()
    assert timer is None or timer > due


def test_only_training_that_is_data_parallel_looks() -> None:
    for spec, looks in (
        (make_spec(), False),
        (make_job(), True),
        (msgspec.structs.replace(make_job(), kind="evaluate"), False),
    ):
        healing = Healing(spec)
        healing.changed(3.0)
        assert (healing.due is not None) is looks


def test_a_change_is_looked_at_soon_though_the_run_would_look_again_much_later_anyway() -> None:
    healing = Healing(make_job())
    healing.changed(0.0)
    assert healing.is_due(HEAL_S, None, True)
    assert healing.due == HEAL_S + AGAIN_S
    healing.changed(20.0)
    assert healing.due == 20.0 + HEAL_S
    assert not healing.is_due(20.0, None, True)
    assert healing.is_due(20.0 + HEAL_S, None, True)
    assert healing.due == 20.0 + HEAL_S + AGAIN_S


def test_it_waits_for_quiet_and_longer_each_time_that_a_process_was_killed() -> None:
    healing = Healing(make_job())
    healing.changed(0.0)
    healing.changed(1.0)
    assert healing.due == 1.0 + HEAL_S
    assert not healing.is_due(5.9, None, False)
    assert healing.is_due(6.0, None, False)
    assert healing.due is None
    waits = []
    for _ in range(7):
        healing.changed(100.0, killed=True)
        assert healing.due is not None
        waits.append(healing.due - 100.0)
        healing.changed(100.0)
        assert healing.due - 100.0 == waits[-1], "who comes back meanwhile changes nothing"
        assert healing.is_due(healing.due, None, False)
    assert waits == [HEAL_S * factor for factor in (1, 2, 4, 8, 16, 16, 16)]
    healing.changed(0.0)
    assert not healing.is_due(900.0, LEFT_S, True)
    assert healing.due == 900.0 + AGAIN_S
    assert healing.is_due(1000.0, LEFT_S + 1, True)


def plan(workers: int, copies: int, nodes: int = 4, speed: float = 1.0) -> Plan:
    homes = tuple(tuple((shard + copy) % nodes for copy in range(copies)) for shard in range(2))
    found = plan_over(tuple((n,) for n in range(workers)), homes, nodes)
    return msgspec.structs.replace(found, samples_per_s=speed * workers)


ALONE = Assignment()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (plan(3, 1), plan(4, 1), "the job moves over n0, n1, n2, n3: 4 workers instead of 3"),
        (plan(2, 1, 2), plan(3, 1, 3), "the job moves onto n2 as well: 3 workers instead of 2"),
        (plan(2, 1, 2), plan(3, 1, 3, speed=0.5), ""),
        (plan(2, 1, 2), plan(2, 1, 3), ""),
        (plan(2, 1, 2), plan(2, 2, 3), "the job moves onto n2 as well: 2 replicas of each shard instead of 1"),
        (plan(2, 2, 2), plan(3, 1, 3), ""),
        (plan(2, 1, 2), msgspec.structs.replace(plan(3, 2), replicas=(), shards=()), ""),
        (msgspec.structs.replace(plan(2, 1), replicas=(), shards=()), plan(3, 2), ""),
    ],
)
def test_stronger_is_more_replicas_or_more_workers_that_are_faster(before: Plan, after: Plan, words: str) -> None:
    assert stronger(make_job(), initial(before, 1), before, after) == words


def test_workers_that_were_asked_for_are_taken_whatever_is_predicted() -> None:
    before, after = plan(2, 1, 2), plan(3, 1, 3, speed=0.5)
    asked = msgspec.structs.replace(make_job(), data=DataParallel(workers=3))
    assert stronger(asked, initial(before, 1), before, after) == "the job moves onto n2 as well: 3 workers instead of 2"


def test_what_a_run_has_left_is_compared_not_what_it_was_planned_with() -> None:
    before = plan(3, 2, 3)
    held = initial(before, 1)
    after = without(held, before, make_job(), 2)
    assert after is not None
    held = committed(held, after, 2)
    assert (
        stronger(make_job(), held, before, plan(2, 2, 2))
        == "the job moves over n0, n1: 2 replicas of each shard instead of 1"
    )
    assert stronger(make_job(), held, before, plan(2, 1, 2)) == ""
    other = msgspec.structs.replace(plan(3, 2, 3), replicas=tuple(Replica((n,)) for n in (0, 1, 2)))
    assert stronger(make_job(), held, before, other).startswith("the job moves onto n2 as well: 3 workers instead of 2")


def test_of_workers_of_several_nodes_that_do_not_come_back_it_is_said_why() -> None:
    two, one = ((0, 1), (2, 3)), ((0, 1),)
    before = plan_over(two, ((1, 2), (2, 0)), 4)
    assert not_rebuilt(initial(before, 1), before, before) == "", "none is lost"
    after = without(initial(before, 1), before, make_job(), 3)
    assert after is not None
    few = "worker 1 is not rebuilt: the nodes that are here suffice for 1 of 2 workers of 2 nodes; start another node, and the "
    assert not_rebuilt(after, before, plan_over(one, ((1, 2), (2, 0)), 3)) == f"{few}job moves by itself"
    assert not_rebuilt(after, before, None, "there is no room") == "worker 1 is not rebuilt: there is no room"
    slow = "worker 1 is not rebuilt: 2 workers over the nodes that are here are predicted to be no faster than 1"
    assert not_rebuilt(after, before, before) == slow
    one_each = without(initial(plan(3, 2, 3), 1), plan(3, 2, 3), make_job(), 2)
    assert one_each is not None
    assert not_rebuilt(one_each, plan(3, 2, 3), None) == "", "a worker of one node is not built of others"


def test_what_is_in_the_way_is_told_once_until_something_changes() -> None:
    healing = Healing(make_job())
    assert not healing.is_news("")
    assert [healing.is_news("few") for _ in range(3)] == [True, False, False]
    assert healing.is_news("slow")
    healing.changed(1.0)
    assert healing.is_news("slow")


def test_a_member_without_a_part_that_comes_has_the_run_compared() -> None:
    mesh = Mesh(make_job(), 1)
    mesh.until(4)
    assert mesh.supervisor._healing.due is None
    mesh.supervisor.member_joined(NODES[2], "c", mesh.now)
    assert mesh.supervisor._healing.due is None, "it takes part already"
    mesh.supervisor.member_joined(NodeId("e" * 32), "e", mesh.now)
    assert mesh.supervisor._healing.due == mesh.now + HEAL_S
