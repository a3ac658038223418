"""What a supervisor asks about a lost node, and the plan of a job that is on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.errors import PlanError
from p2pnn.job.actions import AskCuts, MakePart
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.records import queued
from p2pnn.job.spec import JobSpec
from p2pnn.job.supervisor import Supervisor
from p2pnn.node import recovering
from p2pnn.types import BlobId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, NAMES, A, B, C, exchange, plan_of, post, stored, toy

pytestmark = pytest.mark.asyncio


class FakePlanning:
    """Plans over A and C; `refuses` says for which specs not."""

    def __init__(self) -> None:
        self.asked: list[JobSpec] = []
        self.refuses: Any = lambda spec: False

    async def plan(self, spec: JobSpec, *, compared: bool = True) -> Plan:
        self.asked.append(spec)
        if self.refuses(spec):
            raise PlanError("needs 2.1 GiB more")
        delays = (1, 0) if spec.in_flight else ()
        return msgspec.structs.replace(plan_of(spec, [A, C]), delays=delays)


class Bench:
    def __init__(self, folder: Path, parts: tuple[bytes, ...] = (), **settings: Any) -> None:
        self.post, self.outside = post(A)
        self.outside.on_body = lambda node, message: None
        self.exchange = exchange(folder, self.post)
        self.spec, blobs = toy(**settings)
        self.spec_blob = stored(self.spec, blobs, self.exchange.blobs)
        manifests = tuple(
            Manifest(JOB, self.spec_blob, 6 * n, n, (Part(BlobId(found.decode()), 4, bytes(32)),))
            for n, found in enumerate(parts, 1)
        )
        record = queued(JOB, self.spec_blob, self.spec, A, "a", 0.0)
        self.record = msgspec.structs.replace(
            record, state="recovering", plan=plan_of(self.spec, [A, B]), checkpoints=manifests, generation=3
        )
        self.supervisor = Supervisor(self.record, self.spec, {A: "a", C: "c"}, 0.0, begins=False)
        self.planning = FakePlanning()

    async def replan(self, back_until: float = 0.0) -> None:
        members = {A: "a", C: "c"}
        await recovering.replan(self.supervisor, self.planning, self.exchange, A, lambda: members, back_until)  # type: ignore[arg-type]

    def warnings(self) -> list[str]:
        found = []
        while (action := self.supervisor.next_action()) is not None:
            if getattr(action, "kind", "") == "warning":
                found.append(action.fields["text"])  # type: ignore[union-attr]
        return found


async def test_questions_and_answers_are_messages() -> None:
    assert recovering.question(JOB, AskCuts(B, 7, 1)) == wire.CutsWanted(JOB, 7, 1)
    assert recovering.question(JOB, MakePart(B, 7, 2, 1, 40)) == wire.PartWanted(JOB, 7, 2, 1, 40)


async def test_a_lost_node_is_planned_without_and_what_is_dropped_of_the_wishes_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, nodes=("a", "b"))
    await bench.replan()
    assert bench.planning.asked[0].nodes == ("a",)
    assert bench.supervisor.record.plan == plan_of(bench.spec, [A, C])
    assert bench.warnings() == ["the job asks for node b, which is not here; it goes on without"]


async def test_without_a_plan_a_job_on_its_way_is_parked_and_one_that_never_began_fails(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.planning.refuses = lambda spec: True
    await bench.replan()
    assert bench.supervisor.record.state == "parked"
    assert bench.supervisor.record.reason == "parked: needs 2.1 GiB more; node b is away"
    fresh = queued(JOB, bench.spec_blob, bench.spec, A, "a", 0.0)
    bench.supervisor = Supervisor(fresh, bench.spec, dict(NAMES), 0.0)
    await bench.replan()
    assert (bench.supervisor.record.state, bench.supervisor.record.reason) == ("failed", "needs 2.1 GiB more")


async def test_it_goes_back_to_the_newest_checkpoint_of_which_all_parts_can_be_had(tmp_path: Path) -> None:
    here = exchange(tmp_path, post(A)[0]).blobs.put(b"part")
    bench = Bench(tmp_path, parts=(here.encode(), b"9" * 64))
    bench.outside.peers = {A}
    assert bench.supervisor.record.step == 0
    await bench.replan()
    assert [manifest.step for manifest in bench.supervisor.record.checkpoints] == [6]
    assert bench.supervisor.record.step == 6


async def test_the_newest_checkpoint_is_waited_for_before_an_older_one_is_taken(
    tmp_path: Path,
) -> None:
    here = exchange(tmp_path, post(A)[0]).blobs.put(b"part")
    bench = Bench(tmp_path, parts=(here.encode(), b"9" * 64))
    await bench.replan(back_until=asyncio.get_running_loop().time() + 1000)
    record = bench.supervisor.record
    assert record.state == "parked"
    assert "not all parts of the checkpoint of step 12 are here yet; it waits for b" in record.reason
    assert [manifest.step for manifest in record.checkpoints] == [6, 12]
    await bench.replan(back_until=asyncio.get_running_loop().time())
    assert [manifest.step for manifest in bench.supervisor.record.checkpoints] == [6]
    assert bench.supervisor.record.state == "recovering"


async def test_where_bits_depend_on_the_cut_others_take_the_same_one_if_they_can(tmp_path: Path) -> None:
    bench = Bench(tmp_path, schedule="async:2", micro_batches=1)
    before = bench.supervisor.record.plan
    assert before is not None
    await bench.replan()
    assert [spec.cut for spec in bench.planning.asked] == [before.assignment]
    bench = Bench(tmp_path, schedule="async:2", micro_batches=1)
    bench.planning.refuses = lambda spec: bool(spec.cut)
    await bench.replan()
    assert [bool(spec.cut) for spec in bench.planning.asked] == [True, False]


@pytest.mark.parametrize("message", [wire.PartMade(JOB, 7, 1, b"\xc1"), wire.PartMade(JOB, 7, 1, b"", "a full disk")])
async def test_a_part_that_cannot_be_read_or_made_is_none(tmp_path: Path, message: wire.PartMade) -> None:
    bench = Bench(tmp_path)
    told: list[Any] = []
    bench.supervisor.made = lambda *args: told.append(args)  # type: ignore[method-assign]
    recovering.tell(bench.supervisor, B, message, 1.0)
    assert told == [(B, 7, 1, None, 1.0)]
    part = Part(BlobId("6" * 64), 4, bytes(32))
    recovering.tell(bench.supervisor, B, wire.PartMade(JOB, 7, 2, msgspec.msgpack.encode(part)), 2.0)
    assert told[1] == (B, 7, 2, part, 2.0)


async def test_nodes_that_come_and_go_are_a_plan_that_cannot_be_had_now(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(PlanError, match="nodes come and go"):
        await recovering.planned(bench.spec, bench.planning, lambda: {A: "a"})  # type: ignore[arg-type]
