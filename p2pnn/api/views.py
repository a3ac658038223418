"""What the API shows: plain dictionaries made from the daemon's snapshots and records."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from p2pnn.cluster import Description
from p2pnn.cluster.events import MemberSnapshot
from p2pnn.data.chunks import DTYPES, HEADER_BYTES
from p2pnn.errors import CheckpointError, NotFoundError, StorageError, UsageError
from p2pnn.job import assignment
from p2pnn.job.records import JobRecord
from p2pnn.job.spec import Dataset, JobSpec
from p2pnn.job.work import Entry
from p2pnn.node.daemon import SOFTWARE, Daemon, resident_bytes
from p2pnn.node.members import about
from p2pnn.node.specs import SPEC_BYTES_MAX, splits
from p2pnn.types import BlobId, JobId, NodeId, lasting
from p2pnn.wire.messages import LinkKind


async def node(daemon: Daemon) -> dict[str, Any]:
    """This node, for `node status`."""
    used = await asyncio.to_thread(lambda: sum(size for _, size in daemon.storage.blobs.list()))
    profile = daemon.planning.known
    return {
        "node": daemon.node,
        "name": daemon.config.name,
        "software": SOFTWARE,
        "version": SOFTWARE.split()[1],
        "pid": os.getpid(),
        "address": str(daemon.address),
        "state_dir": str(daemon.config.state_dir),
        "cluster": charter.cluster if (charter := daemon.charter.committed) else "",
        "preset": daemon.config.preset,
        "uptime_s": asyncio.get_running_loop().time() - daemon.started_at,
        "rss_bytes": resident_bytes(),
        "sent_bytes": sum(link.sent_bytes for link in daemon.transport.snapshot()),
        "job": daemon.place.job,
        "executor_pid": next(iter(daemon.place.executor_pids.values()), None),
        "executor_pids": daemon.place.executor_pids,
        "queue": list(daemon.place.waiting),
        "blobs_bytes": used,
        "quota_bytes": daemon.config.quota_bytes,
        "profile": {
            "gflops": profile.gemm_gflops,
            "memory_bytes": profile.memory_bytes_max,
            "fingerprint": profile.fingerprint,
        }
        if profile
        else None,
        "secured": _secured(daemon),
        "notice": "" if daemon.secured else "plain: it has no keys, so it listens on this machine only",
    }


def _secured(daemon: Daemon) -> dict[str, Any] | None:
    """Of a secured node: its cluster, until when its certificate holds, whether it has the authority's key. Plain: None."""
    if daemon.secured is None:
        return None
    held = daemon.secured.identity.credentials
    return {
        "cluster": held.cluster,
        "certificate_ends_s": held.certificate.ends_s if held.certificate else None,
        "holds_authority": held.ca is not None,
        "removed": daemon.secured.identity.removed,
    }


def peers(daemon: Daemon) -> list[dict[str, Any]]:
    """Every member that this node knows of, itself first."""
    trips = {s.node: s.round_trip_s for s in daemon.transport.snapshot() if s.kind == LinkKind.CONTROL}
    running = {
        share.node: record.job
        for record in daemon.jobs.records.values()
        if not record.is_over and record.state != "queued" and record.plan
        for share in record.plan.nodes
    }
    own: dict[str, Any] = {
        "node": daemon.node,
        "name": daemon.config.name,
        "address": str(daemon.address),
        "state": "self",
        "reason": "",
        "rtt_ms": None,
        "since_s": asyncio.get_running_loop().time() - daemon.started_at,
        "by": [],
        "job": daemon.place.job,
        **about(daemon.describe()),
    }
    others: list[dict[str, Any]] = []
    for member in daemon.members.snapshot():
        trip = trips.get(member.node)
        others.append(
            {
                "node": member.node,
                "name": member.name,
                "address": str(member.address),
                "state": str(member.state),
                "reason": member.reason,
                "rtt_ms": trip * 1000 if trip is not None else None,
                "since_s": member.since_s,
                "by": list(member.by),
                "job": running.get(member.node),
                **about(member.about),
            }
        )
    return [own, *sorted([*others, *_unjoined(daemon)], key=lambda row: (row["name"], row["node"]))]


def _unjoined(daemon: Daemon) -> list[dict[str, Any]]:
    """The addresses by which a node with a token tries to join, each with its reason."""
    arrival = daemon.secured.arrival if daemon.secured else None
    now = time.monotonic()
    return [
        {
            "node": "",
            "name": "",
            "address": str(one.address),
            "state": "unreachable",
            "reason": one.reason,
            "rtt_ms": None,
            "since_s": now - one.since,
            "by": [],
            "job": None,
            **about(Description()),
        }
        for one in (arrival.unjoined if arrival else ())
    ]


def cluster(daemon: Daemon) -> dict[str, Any]:
    """The charter as this node knows it, for `cluster show`. coordinator: None while nobody leads; cluster: empty before this
    node was admitted; parked: empty, or why nothing can be decided here. A member's state: self, alive, or away, for `away_s` and
    with a reason; gone_s: since when the coordinator, if it is this node, holds it for dead beyond doubt. lost: how many of the
    members were lost at once, while nothing is reassigned because of that. foreign: living nodes of other clusters. jobs: those
    that are parked, and why. Times are in seconds, and as a person reads them. Raises BetweenClusters for the moments of a
    move or a recovery."""
    snapshot = daemon.charter.snapshot()
    consensus, charter, presence = snapshot.consensus, snapshot.consensus.charter, snapshot.presence
    now = asyncio.get_running_loop().time()

    def state(node: NodeId) -> dict[str, Any]:
        if node == daemon.node or node in snapshot.alive:
            state = "self" if node == daemon.node else "alive"
            return {"state": state, "away_s": None, "away": "", "reason": "", "gone_s": None}
        absence, gone = presence.absence(node), presence.gone.get(node)
        away_s, gone_s = now - absence.since, None if gone is None else now - gone
        return {"state": "away", "away_s": away_s, "away": lasting(away_s), "reason": absence.reason, "gone_s": gone_s}

    return {
        "cluster": charter.cluster if charter else "",
        "coordinator": consensus.leader,
        "term": consensus.term,
        "version": str(charter.version) if charter else "",
        "role": str(consensus.role),
        "parked": snapshot.parked,
        "alarm": presence.alarm is not None,
        "lost": {
            "count": alarm.count,
            "members": alarm.members,
            "since_s": now - alarm.since,
            "since": lasting(now - alarm.since),
        }
        if (alarm := presence.alarm) is not None
        else None,
        "jobs": [
            {"job": record.job, "reason": record.reason}
            for record in daemon.jobs.records.values()
            if record.state == "parked"
        ],
        "disk": snapshot.disk,
        "foreign": [
            {"node": node, "name": other.name, "cluster": other.theirs, "reason": str(other)}
            for node, other in presence.foreign.items()
        ],
        "members": [
            {
                "node": member.node,
                "name": member.name,
                "voter": member.node in charter.voters,
                **state(NodeId(member.node)),
            }
            for member in sorted(charter.members, key=lambda member: (member.name, member.node))
        ]
        if charter
        else [],
    }


def summary(record: JobRecord) -> dict[str, Any]:
    """One line of `jobs ls`."""
    last = record.history[-1] if record.history else {}
    return {
        "job": record.job,
        "name": record.name,
        "kind": record.kind,
        "state": record.state,
        "reason": record.reason,
        "coordinator": record.coordinator,
        "coordinator_name": record.coordinator_name,
        "nodes": [share.name for share in record.plan.nodes] if record.plan else [],
        "epoch": record.epoch,
        "epochs": record.epochs,
        "step": record.step,
        "steps": record.steps,
        "loss": last.get("loss"),
        "metrics": {k: v for k, v in last.items() if k not in ("epoch", "step", "loss", "samples_per_s")},
        "created_s": record.created_s,
        "updated_s": record.updated_s,
    }


def details(record: JobRecord, entry: Entry | None = None, members: Sequence[MemberSnapshot] = ()) -> dict[str, Any]:
    """Everything of `jobs show`. entry: of the job in the charter, while it has one: it says who holds its shards now, and
    without whom the start goes on. members: what is known of those."""
    result = {
        "bits": record.bits,
        "stopped_early": record.stopped_early,
        "evaluation": msgspec.to_builtins(record.results),
    }
    held = _assigned(record, entry)
    return summary(record) | {
        "generation": record.generation,
        "plan": msgspec.to_builtins(record.plan) if record.plan else None,
        "shards": assignment.holders(held, record.plan) if record.plan and held else [],
        "gone": _gone(record, held, members),
        "checkpoints": [
            {"step": m.step, "epoch": m.epoch, "complete": True, "bytes": sum(p.size for p in m.parts)}
            for m in record.checkpoints
        ],
        "best_epoch": record.best.epoch if record.best else None,
        "result": result if record.state == "done" else None,
        "history": list(record.history),
    }


def _assigned(record: JobRecord, entry: Entry | None) -> assignment.Assignment | None:
    """Who has which role in a start that runs; None where none does."""
    if record.is_over or entry is None or record.plan is None or entry.generation != record.generation:
        return None
    try:
        return entry.assigned() or assignment.initial(record.plan, entry.generation)
    except CheckpointError:
        return None


def _gone(
    record: JobRecord, held: assignment.Assignment | None, members: Sequence[MemberSnapshot]
) -> list[dict[str, Any]]:
    """The nodes that a start has lost and goes on without, as they were; `state`, for `since_s` and with a `reason`, is what is
    known of each as a member now: one that is back takes part from the next start on."""
    if held is None or record.plan is None:
        return []
    found = {member.node: member for member in members}
    rows = []
    for share in (record.plan.nodes[index] for index in held.gone if index < len(record.plan.nodes)):
        member = found.get(NodeId(share.node))
        state, since_s, reason = (str(member.state), member.since_s, member.reason) if member else ("unknown", None, "")
        rows.append({"node": share.node, "name": share.name, "state": state, "since_s": since_s, "reason": reason})
    return rows


def results(record: JobRecord) -> dict[str, Any]:
    """Which blobs hold what the job made. NotFoundError where it has made nothing yet."""
    manifest = record.outcome
    if manifest is None and record.predictions is None and not record.results:
        if record.kind == "sample":
            raise NotFoundError(f"job {record.job} wrote a text for who asked for it; nothing of that is kept")
        raise NotFoundError(f"job {record.job} is {record.state} and has no results yet")
    return {
        "job": record.job,
        "state": record.state,
        "spec": record.spec,
        "manifest": msgspec.to_builtins(manifest) if manifest else None,
        "best": record.takes_best and manifest is record.best,
        "bits": record.bits,
        "evaluation": msgspec.to_builtins(record.results),
        "history": list(record.history),
        "plan": msgspec.to_builtins(record.plan) if record.plan else None,
        "predictions": msgspec.to_builtins(record.predictions) if record.predictions else None,
    }


def datasets(daemon: Daemon) -> list[dict[str, Any]]:
    """The data sets of all jobs whose specification is here, with what of them lies in this node's store.

    A data set that is a part of another, as the columns that `predict` reads of those of a training, is shown with it.
    bytes: of the blobs that are here, of total_bytes. active: of the jobs, those that have not ended.
    """
    store = daemon.storage.blobs
    found = [(job, dataset, _chunks(dataset)) for job, dataset in _datasets_of_jobs(daemon)]
    rows: list[tuple[set[BlobId], dict[str, Any]]] = []
    for job, dataset, chunks in sorted(found, key=lambda entry: -len(entry[2])):
        row = next((row for whole, row in rows if chunks <= whole), None)
        if row is None:
            here = [blob for blob in chunks if store.has(blob)]
            row = {
                "id": dataset_id(dataset),
                "name": dataset.name,
                "rows": dataset.rows,
                "columns": [column.name for column in dataset.columns],
                "jobs": [],
                "active": 0,
                "blobs": len(here),
                "bytes": sum(store.size(blob) for blob in here),
                "total_bytes": _bytes(dataset),
            }
            rows.append((chunks, row))
        if job not in row["jobs"]:
            row["jobs"].append(job)
            row["active"] += not daemon.jobs.get(job).is_over
    return [row for _, row in rows if row["blobs"]]


def remove_dataset(daemon: Daemon, ident: str) -> int:
    """Remove a data set's chunks from this node's store; returns the bytes freed. UsageError where a job still needs it."""
    wanted: set[BlobId] = set()
    needed: dict[BlobId, JobId] = {}
    for job, found in _datasets_of_jobs(daemon):
        if dataset_id(found) == ident:
            wanted |= _chunks(found)
        if daemon.jobs.get(job).state not in ("done", "failed", "cancelled"):
            needed |= dict.fromkeys(_chunks(found), job)
    if not wanted:
        raise NotFoundError(f"no data set {ident!r}; `p2pnn data ls` shows those in this node's store")
    for blob in wanted & needed.keys():
        raise UsageError(f"data set {ident} is needed by job {needed[blob]}; cancel that first")
    freed = 0
    for blob in wanted:
        if daemon.storage.blobs.has(blob):
            freed += daemon.storage.blobs.size(blob)
            daemon.storage.blobs.remove(blob)
    return freed


def dataset_id(dataset: Dataset) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(dataset)).hexdigest()[:12]


def _datasets_of_jobs(daemon: Daemon) -> list[tuple[JobId, Dataset]]:
    found: list[tuple[JobId, Dataset]] = []
    store = daemon.storage.blobs
    for job, record in list(daemon.jobs.records.items()):
        try:  # a record may come from a peer, and name anything
            size = store.size(record.spec)
            if size > SPEC_BYTES_MAX:
                continue
            spec = msgspec.msgpack.decode(store.read(record.spec, 0, size), type=JobSpec)
        except (StorageError, UsageError, msgspec.MsgspecError, RecursionError):
            continue
        found.extend((job, split.dataset) for split in splits(spec))
    return found


def _chunks(dataset: Dataset) -> set[BlobId]:
    return {chunk.blob for column in dataset.columns for chunk in column.chunks}


def _bytes(dataset: Dataset) -> int:
    """Of all its chunks, with their headers; a chunk that stands twice is one blob."""
    sizes = {
        chunk.blob: HEADER_BYTES + chunk.rows * math.prod(column.shape) * np.dtype(column.dtype).itemsize
        for column in dataset.columns
        if column.dtype in DTYPES  # a record may come from a peer, and name anything
        for chunk in column.chunks
    }
    return sum(sizes.values())
