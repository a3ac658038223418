"""From a plan to nodes that are all prepared, and what happens to it meanwhile; the rest is in test_supervisor."""

from __future__ import annotations

from typing import Any

from p2pnn.job import actions
from p2pnn.job.supervisor import Supervisor
from tests.job.test_failover import NAMES, NODES, make_job, make_plan
from tests.job.test_supervisor import make_record


def wanted(supervisor: Supervisor) -> list[Any]:
    return list(iter(supervisor.next_action, None))


def test_places_are_taken_one_after_the_other_under_the_generation_that_was_decided() -> None:
    spec = make_job()
    supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
    supervisor.planned(make_plan(), 0.0)
    assert [a for a in wanted(supervisor) if not isinstance(a, actions.Publish)] == [actions.Decide()]
    supervisor.decided(5, 0.0)
    assert supervisor.record.generation == 5
    assert {m.incarnation for s in supervisor.failover.assignment.shards for m in s.members} == {5}
    for node in NODES:
        assert [a.node for a in wanted(supervisor) if isinstance(a, actions.ReserveNode)] == [node]
        supervisor.granted(node, 0.0)
    assert [(a.node, a.index) for a in wanted(supervisor) if isinstance(a, actions.PrepareNode)] == list(
        zip(NODES, range(4), strict=True)
    )
    for node in NODES:
        assert supervisor.record.state == "preparing"
        supervisor.prepared(node, 1, 0.0)
    assert supervisor.record.state == "running"
    orders = [a for a in wanted(supervisor) if isinstance(a, actions.Order)]
    assert {a.nodes for a in orders} == {tuple(NODES)}


def test_a_node_that_goes_before_its_place_is_taken_costs_a_new_plan() -> None:
    spec = make_job()
    supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
    supervisor.planned(make_plan(), 0.0)
    supervisor.decided(1, 0.0)
    supervisor.granted(NODES[0], 0.0)
    wanted(supervisor)
    supervisor.member_lost(NODES[2], "connection reset", 1.0)
    found = wanted(supervisor)
    assert actions.Replan() in found
    assert [a.node for a in found if isinstance(a, actions.ReleaseNode)] == NODES[:2]
    assert supervisor.nodes == []
    assert not supervisor.failover.lose(NODES[0], "node a is lost"), "there is no start"
