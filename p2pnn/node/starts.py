"""The messages of one start of a job: what its supervisor wants, and what the nodes of its plan answer."""

from __future__ import annotations

import logging

import msgspec

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import CheckpointError
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.records import JobRecord
from p2pnn.job.supervisor import Supervisor
from p2pnn.node import parcels
from p2pnn.node.blobs import BlobExchange
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

OfPart = wire.Waiting | wire.Granted | wire.Preparing | wire.Prepared | wire.JobFailed | wire.ShardWish


def prepare(record: JobRecord, index: int, here: NodeId, blobs: BlobStore, term: int) -> wire.Prepare:
    """The Prepare of node `index` of the record's plan. here: the coordinator, in this term. Raises StorageError."""
    assert record.plan is not None
    nodes = tuple(share.node for share in record.plan.nodes)
    manifest = record.newest
    return wire.Prepare(
        job=record.job,
        generation=record.generation,
        spec=record.spec,
        plan=parcels.pack(msgspec.msgpack.encode(record.plan), blobs),
        checkpoint=parcels.pack(msgspec.msgpack.encode(manifest), blobs) if manifest else b"",
        nodes=nodes,
        index=index,
        sources=tuple(dict.fromkeys((here, *nodes))),
        term=term,
    )


def tell(supervisor: Supervisor, node: NodeId, message: OfPart, now: float) -> None:
    """Tell the supervisor what a node's place or part says of this start."""
    match message:
        case wire.Waiting():
            supervisor.waiting(node, message.behind, message.position, now)
        case wire.Granted():
            supervisor.granted(node, now)
        case wire.Preparing():
            supervisor.preparing(node, message.fetched_bytes, message.total_bytes, now)
        case wire.Prepared():
            supervisor.prepared(node, message.memory_bytes, now)
        case wire.JobFailed():
            supervisor.node_failed(node, message.text, now, message.kind, message.peer)
        case wire.ShardWish():
            try:
                supervisor.failover.wish(node, message.shard, message.configuration)
            except CheckpointError as error:
                log.warning("wish refused job=%s node=%s reason=%s", message.job, node[:8], error)


async def whole_checkpoints(record: JobRecord, blobs: BlobExchange) -> tuple[Manifest, ...]:
    """The record's checkpoints up to the newest of which every part can be reached: what a resume may start from.

    Raises CheckpointError where there are some, and none is whole.
    """
    for count in range(len(record.checkpoints), 0, -1):
        manifest = record.checkpoints[count - 1]
        if await _is_whole(manifest, blobs):
            return record.checkpoints[:count]
        log.warning("job=%s checkpoint of step %d has parts that no node has", record.job, manifest.step)
    if record.checkpoints:
        raise CheckpointError(
            f"job {record.job} cannot be resumed: of none of its {len(record.checkpoints)} checkpoints can all parts be "
            "reached; start the nodes that held them, then resume again"
        )
    return ()


async def _is_whole(manifest: Manifest, blobs: BlobExchange) -> bool:
    for part in manifest.parts:
        if not await blobs.is_anywhere(part.blob):
            return False
    return True
