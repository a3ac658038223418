"""What the mesh remembers of a job, so that it can be shown and resumed from any peer.

The coordinator writes the record; every member keeps the one that counts most, see `JobRecord.replaces`. `generation` counts
the starts of a job, `revision` the changes of its record within one start.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import msgspec

from p2pnn.errors import CheckpointError
from p2pnn.job import life
from p2pnn.job.checkpoint import RECUT, Manifest
from p2pnn.job.plan import Plan, cut
from p2pnn.job.script import Predictions
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.types import BlobId, JobId, NodeId

FORMAT: Final = 1
KEPT_CHECKPOINTS: Final = 3

TERM_BITS: Final = 32
"""Revisions of a start that was taken over begin at the term, so many bits up."""


class SplitResult(msgspec.Struct, frozen=True):
    """An evaluation's outcome over one split. loss is None for a graph without one.

    counts: what each metric is a mean over, rows or the labels in them.
    """

    split: str
    rows: int
    loss: float | None
    metrics: dict[str, float]
    counts: dict[str, int] = {}


class JobRecord(msgspec.Struct, frozen=True):
    """One job. Times are seconds since 1970. checkpoints: complete ones, oldest first, at most KEPT_CHECKPOINTS.

    best: the complete checkpoint of the best epoch, where there is a validation split. datasets: what its data is called
    and the blobs of it, so that they can be listed and kept. bits: the fingerprint of the result.
    starts: how many it has had. pausing: it is to be paused where it would go on after a loss; vacating: why it moves to other
    nodes where it would pause, empty where it pauses.
    """

    job: JobId
    name: str
    kind: str
    spec: BlobId
    state: str
    coordinator: NodeId
    coordinator_name: str
    generation: int
    revision: int = 0
    reason: str = ""
    created_s: float = 0.0
    updated_s: float = 0.0
    plan: Plan | None = None
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    checkpoints: tuple[Manifest, ...] = ()
    best: Manifest | None = None
    history: tuple[dict[str, float], ...] = ()
    results: tuple[SplitResult, ...] = ()
    predictions: Predictions | None = None
    bits: str = ""
    stopped_early: bool = False
    takes_best: bool = False
    format: int = FORMAT
    starts: int = 0
    pausing: bool = False
    vacating: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, whatever way."""
        return self.state in life.ENDED

    @property
    def newest(self) -> Manifest | None:
        """The checkpoint that a resume starts from."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def outcome(self) -> Manifest | None:
        """The checkpoint that holds what the job has made so far."""
        return self.best if self.takes_best and self.best else self.newest

    @property
    def version(self) -> tuple[int, int]:
        return (self.generation, self.revision)

    def replaces(self, other: JobRecord) -> bool:
        """Whether this one counts more: the later start's, and of one start the higher revision."""
        return self.version > other.version

    def part_blobs(self) -> set[BlobId]:
        """The checkpoint parts that this record needs; predictions too."""
        manifests = [*self.checkpoints, *([self.best] if self.best else [])]
        blobs = {part.blob for manifest in manifests for part in manifest.parts}
        if self.predictions:
            blobs |= {blob for _, _, chunks in self.predictions.outputs.values() for blob, _ in chunks}
        return blobs


def queued(
    job: JobId, blob: BlobId, spec: JobSpec, coordinator: NodeId, coordinator_name: str, now_s: float
) -> JobRecord:
    """The record of a job that was just submitted, and whose start is not decided yet.

    blob: where its spec lies; now_s: seconds since 1970.
    """
    trains = spec.kind == "train"
    return JobRecord(
        job=job,
        name=spec.name,
        kind=spec.kind,
        spec=blob,
        state="queued",
        coordinator=coordinator,
        coordinator_name=coordinator_name,
        generation=0,
        starts=1,
        created_s=now_s,
        updated_s=now_s,
        steps=spec.steps if trains else 0,
        epochs=spec.epochs if trains else 0,
        takes_best=spec.patience > 0,
    )


def resumed(record: JobRecord, coordinator: NodeId, coordinator_name: str) -> JobRecord:
    """The record of the next start of a job, not decided yet, from its newest checkpoint. Raises UsageError for a state that
    cannot resume."""
    newest = record.newest
    return msgspec.structs.replace(
        record,
        state=life.after(record.state, "resume"),
        reason="",
        coordinator=coordinator,
        coordinator_name=coordinator_name,
        starts=record.starts + 1,
        results=(),
        stopped_early=False,
        pausing=False,
        vacating="",
        step=newest.step if newest else 0,
        epoch=newest.epoch if newest else 0,
        history=record.history[: newest.epoch] if newest else (),
    )


def begun_anew(record: JobRecord, coordinator: NodeId, coordinator_name: str) -> JobRecord:
    """The record of the next start of a job that has not ended, not decided yet, from its newest checkpoint."""
    left = msgspec.structs.replace(record, state="failed")
    return resumed(left, coordinator, coordinator_name)


def without_start(record: JobRecord) -> JobRecord:
    """The record of a job whose start is over before the job has ended: a pause that was under way is still wanted, a move to
    other nodes comes with the next start."""
    pausing = record.pausing or (record.state == "pausing" and not record.vacating)
    return msgspec.structs.replace(record, starts=record.starts + 1, pausing=pausing, vacating="")


def taken_over(record: JobRecord, coordinator: NodeId, coordinator_name: str, term: int) -> JobRecord:
    """The record of a start as its next coordinator has it: what the last one may still have told counts less."""
    revision = max(record.revision + 1, term << TERM_BITS)
    return msgspec.structs.replace(
        record, coordinator=coordinator, coordinator_name=coordinator_name, revision=revision
    )


def term_of(record: JobRecord) -> int:
    """The term in which its start was last taken over; 0 where its first coordinator leads it still."""
    return record.revision >> TERM_BITS


def same_plan(
    plan: Plan | None, checkpoints: Sequence[Manifest], spec: JobSpec, members: Container[NodeId]
) -> Plan | None:
    """The plan to resume a job by instead of a new one: `plan`, that of its last start, where only the same cut repeats the
    same bits (`job.plan.cut`), the last of its checkpoints was written under it, and all of its nodes are here."""
    if plan is None or not checkpoints:
        return None
    written_under = checkpoints[-1].cut.removeprefix(RECUT)
    if not written_under or written_under != cut(spec, plan):
        return None
    return plan if all(share.node in members for share in plan.nodes) else None


def attainable(spec: JobSpec, members: Mapping[NodeId, str], *, anew: bool) -> tuple[JobSpec, list[str]]:
    """What a job that is resumed is planned by, and a sentence for each of its wishes that can no longer be had.

    members: name by id of the nodes that are here. anew: it begins again from its first step; a job that goes on from a
    checkpoint is cut anew, since its given cut is worth less than going on.
    """
    here = {*members, *members.values()}
    nodes = tuple(name for name in spec.nodes if name in here)
    pins = tuple(pin for pin in spec.pins if pin.node in here)
    lost = dict.fromkeys(
        [*(n for n in spec.nodes if n not in here), *(p.node for p in spec.pins if p.node not in here)]
    )
    remarks = [f"the job asks for node {name}, which is not here; it goes on without" for name in lost]
    if spec.node_count > len(members):
        remarks.append(f"the job asks for {spec.node_count} nodes; it goes on over the {len(members)} that are here")
    cut = spec.cut if anew and len(set(spec.cut)) <= len(members) else ()
    if anew and cut != spec.cut:
        remarks.append(f"the job's cut is over {len(set(spec.cut))} nodes, but {len(members)} are here; it is cut anew")
    count = min(spec.node_count, len(members))
    spec, coarser = _coarser(spec, len(members))
    data, more = _fewer_workers(spec, len(members))
    found = msgspec.structs.replace(spec, cut=cut, nodes=nodes, pins=pins, node_count=count, data=data)
    return found, remarks + coarser + more


def _coarser(spec: JobSpec, members: int) -> tuple[JobSpec, list[str]]:
    """A job of workers that are cut over more nodes than there are (`hybrid`), with what can be had instead: fewer nodes for
    each, or on one node alone the whole model."""
    data = spec.data
    if data is None or spec.parallel != "hybrid" or members >= max(2, data.segments):
        return spec, []
    wish = f"the job asks for workers of {max(2, data.segments)} nodes each, but {members} {_are(members)} here; it goes on"
    if members > 1:
        data = msgspec.structs.replace(data, segments=0)
        return msgspec.structs.replace(spec, data=data), [f"{wish} with fewer nodes for each"]
    data = msgspec.structs.replace(data, segments=1)
    return msgspec.structs.replace(spec, parallel="data", data=data), [f"{wish} with the whole model on it"]


def _are(nodes: int) -> str:
    return "node is" if nodes == 1 else "nodes are"


def _fewer_workers(spec: JobSpec, members: int) -> tuple[DataParallel | None, list[str]]:
    """As many of the workers that a data-parallel job asks for as there are nodes, and what that changes. In `sync` each takes an
    equal share of a step's micro-batches."""
    data = spec.data
    if data is None:
        return data, []
    if data.replicas > members:
        data, more = _fewer_workers(
            msgspec.structs.replace(spec, data=msgspec.structs.replace(data, replicas=0)), members
        )
        return data, [
            "the job asks for two nodes for each shard of its parameters, but one is here; a loss of it costs steps",
            *more,
        ]
    each = max(2, data.segments) if spec.parallel == "hybrid" else 1
    nodes, members = members, members // each
    if data.workers <= members:
        return data, []
    divides = [n for n in range(1, members + 1) if data.consistency != "sync" or spec.micro_batches % n == 0]
    workers = max(divides, default=1)
    them = f"{data.workers} workers" + (f" of {each} nodes each" if each > 1 else "")
    remarks = [f"the job asks for {them}, but {nodes} {_are(nodes)} here; it goes on with {workers}"]
    backup = min(data.backup, workers - 1)
    if backup != data.backup:
        remarks.append(
            f"with {workers} workers, gradients of at most {backup} can be done without: backup is {backup} now"
        )
    return msgspec.structs.replace(data, workers=workers, backup=backup), remarks


def ended(record: JobRecord, event: str, reason: str) -> JobRecord:
    """The record of a job that ends while nothing of it runs. Raises UsageError where its state has no such end."""
    state = life.after(record.state, event)
    return msgspec.structs.replace(record, state=state, reason=reason, revision=record.revision + 1)


_decoder = msgspec.msgpack.Decoder(JobRecord)


def encode(record: JobRecord) -> bytes:
    return msgspec.msgpack.encode(record)


def decode(data: bytes, source: str) -> JobRecord:
    """Read a record. source names the file or peer; CheckpointError where it is damaged or newer than this program."""
    try:
        found: Any = msgspec.msgpack.decode(data)
        if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
            raise CheckpointError(
                f"{source} has format {found['format']}; this p2pnn reads up to {FORMAT}: use a newer p2pnn (it is left as it is)"
            )
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(f"{source} is not a readable job record ({error}); it is left as it is") from error
