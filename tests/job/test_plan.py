"""What the bits of a run depend on."""

from __future__ import annotations

import msgspec

from p2pnn.job.plan import Plan, cut
from p2pnn.job.spec import Optimizer
from tests.job.test_supervisor import make_spec


def plan(assignment: tuple[int, ...], delays: tuple[int, ...]) -> Plan:
    return Plan((), assignment, 1, 1.0, 1.0, delays=delays)


def test_the_bits_of_sync_do_not_depend_on_the_plan() -> None:
    assert cut(make_spec(), plan((0, 1), ())) == ""
    assert cut(make_spec(schedule="async:1", micro_batches=1), plan((0, 1), (0, 0))) == ""


def test_with_mini_batches_in_flight_they_depend_on_each_op_s_delay() -> None:
    spec = make_spec(schedule="async:2", micro_batches=1)
    found = cut(spec, plan((0, 0, 1), (1, 0)))
    assert found
    assert cut(spec, plan((0, 1, 1), (1, 0))) != found
    assert cut(spec, plan((0, 0, 1), (0, 1))) != found
    assert cut(spec, plan((1, 0, 2), (1, 1, 0))) == found
    clipped = msgspec.structs.replace(spec, optimizer=Optimizer(clip_norm=1.0))
    assert cut(clipped, plan((1, 0, 2), (1, 1, 0))) != cut(clipped, plan((0, 0, 1), (1, 0)))
