"""Reading a spec that came from somebody, and what of it a node of its plan needs."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import ModelError, UsageError
from p2pnn.job import sampling
from p2pnn.job.plan import Plan
from p2pnn.job.segment import Flow
from p2pnn.job.spec import FORMAT, JOB_KINDS, OPTIMIZERS, SCHEDULES, Column, JobSpec, Split, check_schedule
from p2pnn.model.verify import verify
from p2pnn.ps import consistency
from p2pnn.types import BlobId, NodeId

SPEC_BYTES_MAX: Final = 16 << 20
"""A graph of 100,000 ops with the names of as many chunks stays below."""

_decoder = msgspec.msgpack.Decoder(JobSpec)


def decode_spec(data: bytes) -> JobSpec:
    """Decode and check a spec. Raises ModelError for its graph, UsageError for anything else."""
    try:
        spec = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the job's specification cannot be read: {error}") from error
    if spec.format > FORMAT:
        raise UsageError(
            f"the job's specification has format {spec.format}; this p2pnn reads up to {FORMAT}: update it"
        )
    verify(spec.graph)
    check(spec)
    return spec


def load(blobs: BlobStore, blob: BlobId) -> JobSpec:
    """Read a spec from this node's store. Raises UsageError and ModelError, as decode_spec, and StorageError."""
    size = blobs.size(blob)
    if size > SPEC_BYTES_MAX:
        raise UsageError(f"the job's specification has {size} bytes; at most {SPEC_BYTES_MAX} are taken")
    return decode_spec(blobs.read(blob, 0, size))


def check(spec: JobSpec) -> None:
    """Everything about a spec that needs neither nodes nor data. Raises UsageError with one sentence."""
    for value, known, what in (
        (spec.kind, JOB_KINDS, "kind of job"),
        (spec.optimizer.kind, OPTIMIZERS, "optimizer"),
        (spec.optimizer.schedule, SCHEDULES, "learning-rate schedule"),
        (spec.parallel, ("model", "data", "hybrid"), "parallel mode"),
    ):
        if value not in known:
            raise UsageError(f"{value!r} is not a {what} of this p2pnn; take one of: {', '.join(known)}")
    check_schedule(spec.schedule, spec.micro_batches, spec.kind)
    if spec.batch_size < 1 or spec.micro_batches < 1 or spec.batch_size % spec.micro_batches:
        raise UsageError(
            f"batch size {spec.batch_size} is not divisible by {spec.micro_batches} micro-batches; change one of them"
        )
    if spec.parallel in ("data", "hybrid"):
        consistency.check_spec(spec, spec.data.workers if spec.data else 0, spec.data.shards if spec.data else 0)
    elif spec.data is not None:
        raise UsageError(
            "the job names workers and shards, but is not parallel = data or hybrid; submit it again with one or the other"
        )
    if not 1 <= spec.threads <= 256 or spec.epochs < 1:
        raise UsageError(f"epochs ({spec.epochs}) and threads ({spec.threads}) must be at least 1, threads at most 256")
    if spec.kind == "sample":
        sampling.check(spec)
        return
    needed = spec.train if spec.kind == "train" else spec.test
    if needed is None:
        raise UsageError("the job names no data")
    if spec.kind == "train" and spec.steps_per_epoch < 1:
        raise UsageError(
            f"{needed.rows} training rows do not fill one batch of {spec.batch_size}; take a batch size of at most {needed.rows}"
        )
    if spec.kind == "train" and not spec.graph.losses:
        raise ModelError(f"model {spec.graph.name} has no loss, so there is nothing to train; give nn.Model(loss=…)")
    if spec.kind == "predict" and not spec.graph.outputs:
        raise ModelError(
            f"model {spec.graph.name} names no outputs, so there is nothing to predict; give nn.Model(outputs=…)"
        )
    for value in inputs_read(spec):
        for split in splits(spec):
            column = column_of(split, spec.inputs.get(value, ""))
            if column is None:
                raise UsageError(f"input {value} of the model is fed by no column of data set {split.dataset.name}")


def splits(spec: JobSpec) -> list[Split]:
    """The splits that the job reads."""
    if spec.kind == "sample":
        return []
    wanted = (spec.train, spec.validation, spec.test) if spec.kind == "train" else (spec.test,)
    return [split for split in wanted if split is not None]


def column_of(split: Split, name: str) -> Column | None:
    return next((column for column in split.dataset.columns if column.name == name), None)


def active_ops(spec: JobSpec) -> frozenset[int]:
    """The ops that this kind of job runs."""
    flow = Flow(spec.graph)
    return flow.inference if spec.forward_only else flow.training


def inputs_read(spec: JobSpec) -> list[str]:
    """The graph inputs that the job reads, in graph order."""
    read = {name for index in active_ops(spec) for name in spec.graph.ops[index].inputs}
    return [value.name for value in spec.graph.inputs if value.name in read]


def blobs_read_by(spec: JobSpec, plan: Plan, index: int) -> dict[BlobId, int]:
    """The data chunks that node `index` of the plan reads, with their sizes in bytes (of rows, without header). A node that only
    serves shards reads none."""
    if plan.worker_of(index) < 0:
        return {}
    here = plan.position(index)
    mine = {name for op in active_ops(spec) if plan.assignment[op] == here for name in spec.graph.ops[op].inputs}
    columns = {spec.inputs.get(value.name, "") for value in spec.graph.inputs if value.name in mine}
    return chunks_of(spec, columns)


def read_by_job(spec: JobSpec) -> set[BlobId]:
    """Every blob that some node of the job reads; the spec itself and checkpoints aside."""
    return {*chunks_of(spec, {spec.inputs.get(name, "") for name in inputs_read(spec)}), *spec.initial}


def absent(spec: JobSpec, blobs: BlobStore) -> set[BlobId]:
    """What the job reads and this node's store lacks."""
    return {blob for blob in read_by_job(spec) if not blobs.has(blob)}


def held_by_one(spec: JobSpec, plan: Plan, here: NodeId, absent: set[BlobId]) -> dict[NodeId, tuple[BlobId, ...]]:
    """By node, the blobs that it alone will hold once the plan is prepared. here: the coordinator, which lacks `absent`."""
    holders = {blob: set() if blob in absent else {here} for blob in read_by_job(spec)}
    for index, share in enumerate(plan.nodes):
        for blob in (*blobs_read_by(spec, plan, index), *spec.initial):
            holders[blob].add(share.node)
    found: dict[NodeId, list[BlobId]] = {}
    for blob, nodes in sorted(holders.items()):
        if len(nodes) == 1:
            found.setdefault(next(iter(nodes)), []).append(blob)
    return {node: tuple(blobs) for node, blobs in sorted(found.items())}


def chunks_of(spec: JobSpec, columns: set[str]) -> dict[BlobId, int]:
    """All chunks of these columns, over all splits that the job reads."""
    found: dict[BlobId, int] = {}
    for split in splits(spec):
        for name in columns:
            column = column_of(split, name)
            if column is not None:
                row_bytes = math.prod(column.shape) * _itemsize(column.dtype)
                found |= {chunk.blob: chunk.rows * row_bytes for chunk in column.chunks}
    return found


def _itemsize(dtype: str) -> int:
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) // 8 if digits else 1
