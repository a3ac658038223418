"""What data parallelism costs beside computing: bytes between workers and shards, passes over parameters, memory of each role.

A worker holds the whole model. Beside its gradients it keeps the parameters as they came from the shards, what it has accrued,
bodies of pushes on their way and, where pushes are compressed, what rounding still owes. A server holds its shards'
parameters (two versions, unless workers read live memory), the optimizer's state, and a place for each push that may be
under way.

Passes over parameters count as bytes at the node's memory bandwidth, per element. They were measured with 2M elements on an AMD
EPYC, in the unit of a copy, which moves 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.errors import UsageError
from p2pnn.job.assignment import REPLICATED_SHARDS_MAX
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.model import sums
from p2pnn.plan.cost import UPDATE_CALLS, Workload, memory_bytes
from p2pnn.plan.profile import Profile
from p2pnn.ps.compression import codec
from p2pnn.ps.consistency import Consistency, consistency, settings
from p2pnn.ps.copies import copies_bytes
from p2pnn.ps.layout import ServerLayout, WorkerLayout
from p2pnn.ps.optimizers import OUTER
from p2pnn.ps.sharding import Sharding
from p2pnn.ps.space import ELEMENT_BYTES
from p2pnn.train.optimizers import BLOCK, SLOTS

ACCRUE: Final = 20
"""Handing a gradient over and adding it to those before."""

ENCODE: Final[Mapping[str, int]] = {"float32": 8, "bf16": 70, "int8": 95, "top": 195}
"""A push, with its error feedback."""

DECODE: Final[Mapping[str, int]] = {"float32": 0, "bf16": 12, "int8": 14, "top": 5}
"""A push, on the shard; float32 is used where it lies."""

DIFFER: Final[Mapping[str, int]] = {"float32": 0, "bf16": 62, "int8": 82, "top": 115}
"""The difference of parameters that one worker is sent; float32 is sent from where it lies."""

INSTALL: Final[Mapping[str, int]] = {"float32": 16, "bf16": 32, "int8": 34, "top": 25}
"""Fetched parameters: out of the landing place, and to where the model reads them."""

JUDGE: Final = 4
"""The norm of a push, by which a runaway is found."""

ADD: Final = 12
"""A push to the sum of a round; a gradient to the parameters where a worker applies its own at once."""


HANDLING_S: Final = 3e-4
"""What a worker computes for one shard's push and answer, and the shard likewise, besides passes over parameters."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """How a job's data parallelism exchanges. push_bytes, pull_bytes: per shard, of one push and of one answer with values.

    own: what each segment of a model replica has of the sharding; of a worker that is one node, all of it. parts: messages of one
    push, per shard. n_push, n_fetch: a worker's steps from one push, or fetch, to the next.
    """

    how: Consistency
    sharding: Sharding
    own: tuple[Sharding, ...]
    push_bytes: tuple[int, ...]
    pull_bytes: tuple[int, ...]
    parts: tuple[int, ...]
    n_push: int
    n_fetch: int

    @property
    def pushed_per_step(self) -> float:
        """Bytes that one worker sends to all shards, on average over its steps."""
        return sum(self.push_bytes) / self.n_push

    @property
    def fetched_per_step(self) -> float:
        return sum(self.pull_bytes) / self.n_fetch


def settings_of(spec: JobSpec) -> DataParallel:
    return spec.data or DataParallel()


def exchange(spec: JobSpec, sharding: Sharding, own: Sequence[Sharding] = ()) -> Exchange:
    """own: where replicas are cut (`sharding.cut_segments`). Raises UsageError for a consistency or compression that there is
    not."""
    data = settings_of(spec)
    how = consistency(data.consistency, data.backup)
    push, pull = codec(data.push), codec(data.pull)
    every = how.local_steps if how.kind == "local" else 0
    return Exchange(
        how=how,
        sharding=sharding,
        own=tuple(own) or (sharding,),
        push_bytes=tuple(sum(push.byte_count(part.size) for part in s.parts) for s in sharding.shards),
        pull_bytes=tuple(pull.byte_count(s.size) for s in sharding.shards),
        parts=tuple(len(s.parts) for s in sharding.shards),
        n_push=every or data.n_push,
        n_fetch=every or data.n_fetch,
    )


def _kind(compression: str) -> str:
    return compression.partition(":")[0]


def worker_s(spec: JobSpec, there: Exchange, profile: Profile, segment: int = 0) -> tuple[float, float, float]:
    """What a worker, or its node with this segment, does besides its passes, in seconds: in every step, per push, per fetch."""
    data, elements = settings_of(spec), there.own[segment].space.size
    moved = float(ACCRUE)
    if there.how.kind == "local":
        moved = 0.0
    elif data.local_rate:
        moved += ADD
    step = moved * elements / profile.bytes_per_s
    if there.how.kind == "local":
        step += _update_s(spec.optimizer.kind, elements, profile)
    push = ENCODE[_kind(data.push)] * elements / profile.bytes_per_s + HANDLING_S * len(there.own[segment].shards)
    return step, push, INSTALL[_kind(data.pull)] * elements / profile.bytes_per_s


def serve_s(spec: JobSpec, there: Exchange, shard: int, profile: Profile) -> tuple[float, float, float]:
    """What one shard does, in seconds: per push that comes, per update of the parameters, and per answer with values."""
    data, elements = settings_of(spec), there.sharding.shards[shard].size
    push = DECODE[_kind(data.push)] + JUDGE + (ADD if there.how.in_rounds else 0)
    kind = OUTER.kind if there.how.kind == "local" else spec.optimizer.kind
    answer = DIFFER[_kind(data.pull)] * elements / profile.bytes_per_s
    return push * elements / profile.bytes_per_s + HANDLING_S, _update_s(kind, elements, profile), answer


def _update_s(kind: str, elements: int, profile: Profile) -> float:
    """An optimizer over so many elements, as `Workload` counts it for a node that updates its own parameters."""
    moved = ELEMENT_BYTES * elements * (4 + 6 * len(SLOTS[kind]))
    calls = UPDATE_CALLS.get(kind, 16) * -(-elements // BLOCK)
    return moved / profile.bytes_per_s + profile.overhead_s * calls


def worker_bytes(work: Workload, spec: JobSpec, there: Exchange) -> int:
    """Upper bound of what a worker that is one node holds: the whole model, and what it exchanges with the shards."""
    return segment_bytes(work, spec, there, [0] * work.count, 0, 1)


def segment_bytes(
    work: Workload, spec: JobSpec, there: Exchange, assignment: Sequence[int], segment: int, frames: int
) -> int:
    """Upper bound of what a worker's node holds that computes these of the ops, and exchanges their parameters."""
    data, own = settings_of(spec), there.own[segment]
    size, mine = ELEMENT_BYTES * own.space.size, [op for op, node in enumerate(assignment) if node == segment]
    whole = memory_bytes(work, assignment, segment, frames)
    whole += int(work.fused_bytes(0)[mine].sum())  # a push needs every gradient
    if there.how.kind != "local":
        whole -= work.slots * size  # the shards' optimizers have the state
    exchanged = 5 * size  # `ps.worker`: parameters, gradient; `ps.port`: what is accrued, values, a difference to them
    if data.push != "float32":
        exchanged += 2 * size  # what rounding owes
    if data.pull != "float32":
        exchanged += sum(there.pull_bytes[shard.index] for shard in own.shards)
    return whole + exchanged + WorkerLayout.of(own, settings(data)).nbytes


def server_bytes(spec: JobSpec, there: Exchange, shards: Sequence[int], workers: int, copies: int = 1) -> int:
    """Upper bound of what the server that holds these shards takes, for so many workers; 0 for none. copies: nodes that hold
    each; a backup takes as much as a primary, and each of several has room for what a learner needs."""
    data, how = settings_of(spec), there.how
    slots = len(SLOTS[OUTER.kind if how.kind == "local" else spec.optimizer.kind])
    scratch = (sums.most(workers) if how.in_rounds else 0) + (data.push != "float32")
    differences = workers * (data.pull != "float32")
    size = sum(there.sharding.shards[shard].byte_count for shard in shards)
    layout = ServerLayout.of(there.sharding, shards, settings(data), workers, copies)
    copied = sum(
        copies_bytes(
            layout.slots[shard].nbytes, (1 + slots) * there.sharding.shards[shard].byte_count, workers * how.in_rounds
        )
        for shard in shards
    )
    return layout.arena_bytes + size * (slots + scratch + differences) + copied * (copies > 1)


def shard_counts(spec: JobSpec, least: int, most: int, copies: int) -> list[int]:
    """Numbers of shards to try, with so many nodes for each: what is asked for, or least … most; none that the charter has no
    room for."""
    asked = settings_of(spec).shards
    numbers = [asked] if asked else range(least, most + 1)
    return [number for number in numbers if copies == 1 or number <= REPLICATED_SHARDS_MAX]


def check_shards(spec: JobSpec, tensors: int) -> None:
    """Raise UsageError for more shards than the model has parameter tensors, or than can have replicas where that is asked."""
    asked, replicas = settings_of(spec).shards, settings_of(spec).replicas
    if replicas > 1 and asked > REPLICATED_SHARDS_MAX:
        raise UsageError(
            f"--shards {asked} with --replicas {replicas}: who holds which replica is kept in the cluster's charter, which has "
            f"room for {REPLICATED_SHARDS_MAX} shards of a job; take at most --shards {REPLICATED_SHARDS_MAX}, or --replicas 1"
        )
    if asked > tensors:
        raise UsageError(
            f"--shards {asked} is more than the {tensors} parameter tensors of the model {spec.graph.name}: no shard may be "
            f"empty; take at most --shards {tensors}"
        )
