"""Who has which role in a start now: who holds each shard of the parameters, and which nodes take part no more.

A data-parallel start is planned over nodes that compute, hold shards, or both. Where each shard has several replicas, a node may
be lost and the start goes on without it (*failover*): its shards have other in-sync replicas, of which one becomes the primary,
and its batches are leased to other workers. What holds is decided by the charter alone: a change is proposed by the coordinator,
who sees a node lost, or by a shard's primary, who finds a replica slow or ready (`replication.configuration`); it is committed
with the job's entry (`job.work`), and only then told to the nodes of the start. So whoever was deposed can acknowledge nothing.

Nobody comes into a start that runs: a member that could help, or a node that is back, takes part from the next start on. Where
shards have one replica each, a start goes on without a node that holds none of them; where it has no shards, without nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from p2pnn.errors import CheckpointError
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.replication.configuration import Configuration, Member, may_follow

REPLICATED_SHARDS_MAX: Final = 256
"""Shards of a plan where they have replicas: whatever becomes of such a start, the charter has room for who has which role in it
(`job.work.ASSIGNMENT_BYTES_MAX`)."""

SHARDS_MAX: Final = 1024
NODES_MAX: Final = 1024
"""What is received is bounded before anything is built from it; a plan has far fewer."""


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """shards: of each shard of the plan its configuration; () where no shard has more than one replica. gone: indices into the
    plan's nodes of those that were lost, in the order in which they were: they take no part any more."""

    shards: Annotated[tuple[Configuration, ...], Meta(max_length=SHARDS_MAX)] = ()
    gone: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=NODES_MAX)] = ()

    @property
    def version(self) -> tuple[int, int]:
        """Of two assignments of one start, the one with the higher version is the newer one."""
        return max((shard.generation for shard in self.shards), default=0), len(self.gone)


def initial(plan: Plan, generation: int) -> Assignment:
    """As the plan has it. generation: the start's; its processes are new, so it is their incarnation too."""
    if all(len(home.nodes) < 2 for home in plan.shards):
        return Assignment()
    member = lambda index: Member(plan.nodes[index].node, generation)  # noqa: E731
    return Assignment(
        tuple(Configuration(generation, len(home.nodes), tuple(map(member, home.nodes))) for home in plan.shards)
    )


def primary_of(assignment: Assignment, plan: Plan, shard: int) -> int:
    """The index of the node that is a shard's primary."""
    if not assignment.shards:
        return plan.shards[shard].nodes[0]
    return index_of(plan, assignment.shards[shard].primary.node)


def holders(assignment: Assignment, plan: Plan) -> list[dict[str, Any]]:
    """For a person, by names of nodes: who holds each shard; none where no shard has several replicas."""
    names = {share.node: share.name for share in plan.nodes}
    return [
        {
            "shard": number,
            "primary": names.get(shard.primary.id, shard.primary.node),
            "backups": [names.get(member.id, member.node) for member in shard.in_sync[1:]],
            "learners": [names.get(member.id, member.node) for member in shard.learners],
        }
        for number, shard in enumerate(assignment.shards)
    ]


def index_of(plan: Plan, node: str) -> int:
    """A node's place in the plan; −1 for one that has none."""
    return next((index for index, share in enumerate(plan.nodes) if share.node == node), -1)


def gone_workers(gone: Collection[int], plan: Plan) -> tuple[int, ...]:
    """The numbers of the workers that take no part any more, where these nodes do not: a model replica needs all of its own."""
    return tuple(number for number, replica in enumerate(plan.replicas) if not set(gone).isdisjoint(replica.nodes))


def is_leased(plan: Plan, spec: JobSpec) -> bool:
    """Whether batches are dealt out while the job runs, so that others train those of a worker that is lost. In `sync` and
    `local:H` each worker's share is part of what is computed."""
    return bool(plan.replicas) and spec.data is not None and spec.data.consistency.partition(":")[0] in ("async", "ssp")


def without(assignment: Assignment, plan: Plan, spec: JobSpec, lost: int) -> Assignment | None:
    """What to propose when node `lost` of the plan is: the start goes on without it. None where it cannot, and is over."""
    if lost in assignment.gone:
        return assignment
    if not plan.shards or (not assignment.shards and any(lost in home.nodes for home in plan.shards)):
        return None
    after = Assignment(assignment.shards, (*assignment.gone, lost))
    if plan.worker_of(lost) >= 0 and (
        not is_leased(plan, spec) or len(gone_workers(after.gone, plan)) == len(plan.replicas)
    ):
        return None
    node = plan.nodes[lost].node
    shards = []
    for shard in assignment.shards:
        in_sync = [member for member in shard.in_sync if member.node != node]
        if not in_sync:
            return None
        shards.append(shard.replaced(in_sync, [member for member in shard.learners if member.node != node]))
    return msgspec.structs.replace(after, shards=tuple(shards))


def may_lose(plan: Plan, spec: JobSpec) -> bool:
    """Whether a start of this plan may go on without some node of it."""
    return any(without(initial(plan, 0), plan, spec, node) is not None for node in range(len(plan.nodes)))


def is_spare(assignment: Assignment, plan: Plan, lost: int) -> bool:
    """Whether each shard has another process without a node of a data-parallel plan. A worker may be missed all the same."""
    if assignment.shards:
        node = plan.nodes[lost].node
        return all(any(member.node != node for member in shard.in_sync) for shard in assignment.shards)
    return bool(plan.shards) and all(lost not in home.nodes for home in plan.shards)


def wished(assignment: Assignment, shard: int, proposal: Configuration) -> Assignment | None:
    """What to propose when a shard's primary wants another configuration of its replicas: to demote, promote or remove one. None
    for a wish that is stale: whoever has it is to be told what holds.

    A wish for what holds is a change as well, to a new generation: it takes back an earlier one, which may be on its way. Until
    then a primary waits for a learner that it wished to promote.

    Whoever is to be removed, for it has been silent, is a learner while its node is a member: where it only stood still it
    comes back by itself, and nobody waits for a learner.
    """
    if shard >= len(assignment.shards):
        return None
    before = assignment.shards[shard]
    if proposal.copies != before.copies or not set(proposal.members) <= set(before.members):
        return None
    if not may_follow(before, proposal):
        return None
    silent = [member for member in before.members if member not in proposal.members]
    proposal = proposal.replaced(proposal.in_sync, (*proposal.learners, *silent))
    proposal = msgspec.structs.replace(
        proposal, generation=before.generation + 1
    )  # another than before; `committed` has the last word
    shards = (*assignment.shards[:shard], proposal, *assignment.shards[shard + 1 :])
    return msgspec.structs.replace(assignment, shards=shards)


def committed(before: Assignment, after: Assignment, generation: int) -> Assignment:
    """`after` as it holds once it is committed: the shards that changed get the commit's generation."""
    shards = tuple(
        new if new == old else msgspec.structs.replace(new, generation=generation)
        for old, new in zip(before.shards, after.shards, strict=True)
    )
    return msgspec.structs.replace(after, shards=shards)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Assignment)
_configurations: Final = msgspec.msgpack.Decoder(Configuration)


def encode(assignment: Assignment) -> bytes:
    return _encoder.encode(assignment)


def decode(data: bytes) -> Assignment:
    """Raises CheckpointError for bytes that are none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"who has which role in a start cannot be read: {error}") from None


def check(assignment: Assignment, plan: Plan) -> None:
    """Raises CheckpointError for one of another plan: for as many shards as it has, where those have replicas, and its nodes."""
    nodes = {share.node for share in plan.nodes}
    members = {member.node for shard in assignment.shards for member in shard.members}
    shards = len(plan.shards) if initial(plan, 0).shards else 0
    gone = set(assignment.gone)
    if len(assignment.shards) != shards or not members <= nodes or not gone <= set(range(len(plan.nodes))):
        raise CheckpointError("who has which role is told of another plan")


def encode_configuration(configuration: Configuration) -> bytes:
    """As it travels in `wire.ShardWish`."""
    return _encoder.encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """Raises CheckpointError for bytes that are none."""
    try:
        return _configurations.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"a shard's configuration cannot be read: {error}") from None
