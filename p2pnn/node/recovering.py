"""What a supervisor does about a lost node, in messages, and the new plan for a job that is on its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from p2pnn.errors import CheckpointError, P2pnnError, PlanError
from p2pnn.job import records
from p2pnn.job.actions import AskCuts, MakePart
from p2pnn.job.checkpoint import Part
from p2pnn.job.plan import Plan
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import JobSpec
from p2pnn.job.supervisor import Supervisor
from p2pnn.node import specs, starts
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.planning import Planning
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

REPLANS_MAX: Final = 3
UNSTEADY: Final = "nodes come and go while the job is planned; wait until they stay, then try again"

BACK_S: Final = 60.0
"""After this daemon has started, perhaps behind a power cut, or a node was lost, perhaps for a moment: for nodes to come back
before a checkpoint that only they hold is given up for an older one."""

log = logging.getLogger("p2pnn.jobs")

_parts = msgspec.msgpack.Decoder(Part)

Answer = wire.CutsHeld | wire.PartMade


def question(job: JobId, action: AskCuts | MakePart) -> wire.CutsWanted | wire.PartWanted:
    """The message that an action sends to its node."""
    about = (job, action.generation, action.request)
    return (
        wire.CutsWanted(*about) if isinstance(action, AskCuts) else wire.PartWanted(*about, action.index, action.step)
    )


def tell(supervisor: Supervisor, node: NodeId, message: Answer, now: float) -> None:
    """Tell the supervisor what a member answers."""
    match message:
        case wire.CutsHeld():
            held = list(zip(message.indices, message.steps, strict=False))
            supervisor.cuts(node, message.generation, message.request, message.step, held, now)
        case wire.PartMade():
            part = None
            if message.error:
                log.warning("no part of a cut job=%s node=%s reason=%s", message.job, node[:8], message.error)
            else:
                try:
                    part = _parts.decode(message.part)
                except msgspec.MsgspecError as error:
                    log.warning("no part of a cut job=%s node=%s reason=%s", message.job, node[:8], error)
            supervisor.made(node, message.generation, message.request, part, now)


async def replan(
    supervisor: Supervisor,
    planning: Planning,
    blobs: BlobExchange,
    here: NodeId,
    members: Callable[[], dict[NodeId, str]],
    back_until: float = 0.0,
) -> None:
    """Plan a job again, over who is left, and tell its supervisor; have data copied that only one node would hold.

    back_until: in the loop's time; before it no checkpoint is given up because of nodes that are not here yet.
    """
    began, now = supervisor.record.state != "queued", asyncio.get_running_loop().time
    try:
        if began:
            await _find_checkpoint(supervisor, blobs, now(), members() if now() < back_until else None)
        spec, remarks = wanted(supervisor, members(), anew=not began)
        plan = await _same_cut(supervisor, spec, planning, members())
        plan = plan or await planning.plan(spec, compared=not began)
    except P2pnnError as error:
        supervisor.unplanned(str(error), now())
        return
    supervisor.planned(plan, now(), remarks)
    if began and not supervisor.ended:
        lacking = await asyncio.to_thread(specs.absent, supervisor.spec, blobs.blobs)
        keep_data(supervisor, alone(supervisor.spec, plan, here, lacking, len(members())))


def wanted(supervisor: Supervisor, members: Mapping[NodeId, str], *, anew: bool) -> tuple[JobSpec, list[str]]:
    """What a job is planned by over these members, and a sentence for each of its wishes that it does not get; see
    `job.records.attainable`."""
    found, remarks = records.attainable(supervisor.spec, members, anew=anew)
    shunned = supervisor.attempts.shunned & members.keys()
    if shunned:
        allowed = [n for n, name in members.items() if n not in shunned and (not found.nodes or name in found.nodes)]
        count = min(found.node_count, len(allowed))
        found = msgspec.structs.replace(found, nodes=tuple(allowed), node_count=count)
        remarks += [f"node {members[n]} is left out: another node does not reach it" for n in sorted(shunned)]
    return found, remarks


async def planned(spec: JobSpec, planning: Planning, members: Callable[[], Mapping[NodeId, str]]) -> Plan:
    """A plan over members that are all still there when it is made. Raises PlanError, also where they come and go."""
    for _ in range(REPLANS_MAX):
        plan = await planning.plan(spec)
        if all(share.node in members() for share in plan.nodes):
            return plan
    raise PlanError(UNSTEADY)


async def planned_without_the_lost(
    spec: JobSpec, planning: Planning, members: Callable[[], Mapping[NodeId, str]], *, anew: bool
) -> tuple[Plan, list[str]]:
    """A plan for a job that has been accepted, and a remark for each wish that it cannot have any more. Raises as `planned`."""
    for _ in range(REPLANS_MAX):
        here = dict(members())
        wanted, remarks = records.attainable(spec, here, anew=anew)
        try:
            return await planned(wanted, planning, members), remarks
        except PlanError:
            if here.keys() <= members().keys():
                raise
    raise PlanError(UNSTEADY)


def keep_data(supervisor: Supervisor, alone: Mapping[NodeId, tuple[BlobId, ...]]) -> None:
    """Have data copied that one node alone holds."""
    for source, blobs in alone.items():
        for start in range(0, len(blobs), wire.BLOBS_MAX):
            supervisor.keep_data(source, blobs[start : start + wire.BLOBS_MAX])


def alone(
    spec: JobSpec, plan: Plan, holder: NodeId, lacking: set[BlobId], members: int
) -> dict[NodeId, tuple[BlobId, ...]]:
    """By node, what it alone will hold of the job's data: it needs a second copy, so that the run can go on without that node.

    holder: a node that has all of it but `lacking`.
    """
    return specs.held_by_one(spec, plan, holder, lacking) if members > 1 else {}


def absent(record: JobRecord, members: Mapping[NodeId, str]) -> list[str]:
    """Names of the nodes that the job ran on and that are not here."""
    return [share.name for share in record.plan.nodes if share.node not in members] if record.plan else []


async def _find_checkpoint(
    supervisor: Supervisor, blobs: BlobExchange, now: float, booting: Mapping[NodeId, str] | None
) -> None:
    """Go back to an older checkpoint where parts of the newest are nowhere. Raises CheckpointError where no one is whole.

    booting: who is here already, while others may still come; then the newest is waited for (CheckpointError).
    """
    record = supervisor.record
    whole = await starts.whole_checkpoints(record, blobs)
    if len(whole) < len(record.checkpoints):
        if booting is not None and record.newest and (away := absent(record, booting)):
            raise CheckpointError(
                f"not all parts of the checkpoint of step {record.newest.step} are here yet; it waits for {', '.join(away)}"
            )
        supervisor.go_back(whole[-1] if whole else None, now)


async def _same_cut(
    supervisor: Supervisor, wanted: JobSpec, planning: Planning, members: dict[NodeId, str]
) -> Plan | None:
    """The cut that the job had, over others, where only that repeats the same bits (`job.plan.cut`) and there are enough."""
    before = supervisor.record.plan
    if before is None or supervisor.spec.in_flight < 2 or len(set(before.assignment)) > len(members):
        return None
    try:
        return await planning.plan(msgspec.structs.replace(wanted, cut=before.assignment, node_count=0))
    except PlanError:
        return None
