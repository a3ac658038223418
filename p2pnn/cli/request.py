"""What a person asks for, as one tree of settings, and what of it cannot be; `jobfile` reads and writes it."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from p2pnn.config import parse_bytes, unknown
from p2pnn.errors import PlanError, UsageError
from p2pnn.job.spec import OPTIMIZERS, SCHEDULES, DataParallel, Optimizer, check_schedule
from p2pnn.plan.verdict import shareable
from p2pnn.ps.compression import codec
from p2pnn.ps.consistency import REPLICAS_MAX, check_segments, consistency
from p2pnn.ps.sharding import POLICIES

FORMAT: Final = 1

VALIDATION_FRACTION: Final = 0.1
"""Of the training rows, where a job has patience and no validation split of its own; of a text, always."""

TEST_FRACTION: Final = 0.2
"""Of the rows, where the data has no part to test on; of a text nothing."""

FRACTION_MAX: Final = 0.9

WHOLE_MAX: Final = 2**53 - 1
"""Of whole numbers: what JSON and TOML readers keep exactly, and 64 bits hold."""


class ModelPart(msgspec.Struct, frozen=True):
    """source: `file.py:function`, the name of a network of the zoo, or a saved `graph.msgpack`. arguments: the function's."""

    source: str = ""
    arguments: dict[str, Any] = {}


class DataPart(msgspec.Struct, frozen=True):
    """train, test: a path, or `digits`. Without test, test_fraction of the rows are kept apart for it.

    label: the column that is learnt. inputs: graph input → column. scale: `auto`, `none`, or a number to multiply with.
    The fractions, where nobody gave them, are as `settled` says. context: of text, characters of a row; 0 for what the model
    takes. image_size: images are resized to this, as `32x32`; empty leaves them.
    fingerprint: of the data that a saved run was trained on, so that eval knows them again; nothing else reads it.
    """

    train: str = ""
    test: str = ""
    label: str = ""
    inputs: dict[str, str] = {}
    scale: float | str = "auto"
    validation_fraction: float | None = None
    test_fraction: float | None = None
    fingerprint: str = ""
    context: int = 0
    image_size: str = ""


class TrainPart(msgspec.Struct, frozen=True):
    """The training itself; as in JobSpec. init: a model.safetensors or a run's folder to start from.

    snapshot_steps: from one snapshot in memory to the next; -1 for as few as cost 5 % of the time, 0 for none.
    """

    epochs: int = 10
    batch_size: int = 128
    micro_batches: int = 4
    optimizer: Optimizer = Optimizer()
    patience: int = 0
    monitor: str = ""
    checkpoint_steps: int = 0
    init: str = ""
    snapshot_steps: int = -1


class MeshPart(msgspec.Struct, frozen=True):
    """Where it runs. nodes: how many (0: every one that has room) or which. pins: name pattern → node. memory: per node.

    cut: which node (0, 1, …) each op of the graph ran on, in its order; the planner chooses what machine each is. A run with
    mini-batches in flight (`async:K`) writes it, because its bits depend on it; empty, the planner cuts.
    """

    parallel: str = "model"
    schedule: str = "sync"
    nodes: int | list[str] = 0
    pins: dict[str, str] = {}
    threads: int = 1
    memory: int | str = 0
    cut: list[int] = []


class DataParallelPart(msgspec.Struct, frozen=True):
    """Of parallel = "data", "hybrid" and "auto"; as the flags of the same names, and as in `job.spec.DataParallel`. segments: of
    "hybrid" alone."""

    consistency: str = "async"
    workers: int = 0
    shards: int = 0
    replicas: int = 0
    backup: int = 0
    push_every: int = 1
    fetch_every: int = 1
    push_compression: str = "float32"
    pull_compression: str = "float32"
    local_rate: float = 0.0
    warm_start: int = 0
    staleness_max: int = 0
    scale_by_staleness: bool = False
    shard_policy: str = "equal"
    segments: int = 0

    def spec(self, *, hybrid: bool = False) -> DataParallel:
        return DataParallel(
            consistency=self.consistency,
            backup=self.backup,
            workers=self.workers,
            shards=self.shards,
            replicas=self.replicas,
            cut=self.shard_policy,
            push=self.push_compression,
            pull=self.pull_compression,
            n_push=self.push_every,
            n_fetch=self.fetch_every,
            local_rate=self.local_rate,
            warm_start=self.warm_start,
            staleness_max=self.staleness_max,
            scale_by_staleness=self.scale_by_staleness,
            segments=self.segments if hybrid else 1,
        )


class Request(msgspec.Struct, frozen=True):
    """A whole job file. name: of the job and its results' folder; empty for the data's name."""

    format: int = FORMAT
    name: str = ""
    seed: int = 0
    model: ModelPart = ModelPart()
    data: DataPart = DataPart()
    train: TrainPart = TrainPart()
    mesh: MeshPart = MeshPart()
    data_parallel: DataParallelPart = DataParallelPart()

    @property
    def deals_data(self) -> bool:
        """Whether its data may be dealt out to workers."""
        return self.mesh.parallel in ("data", "hybrid", "auto")

    @property
    def is_hybrid(self) -> bool:
        return self.mesh.parallel == "hybrid"

    @property
    def nodes_per_worker(self) -> int:
        """At least."""
        return max(2, self.data_parallel.segments) if self.is_hybrid else 1

    @property
    def memory_bytes_max(self) -> int:
        return parse_bytes(self.mesh.memory, "memory")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width), or None. Raises UsageError for text that is no size."""
        text = self.data.image_size.lower().replace("×", "x")
        if not text:
            return None
        parts = [part.strip() for part in text.split("x")]
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(
                f"image size {self.data.image_size!r}: write height and width, such as 32x48, or one number for both"
            )
        return int(parts[0]), int(parts[-1])

    @property
    def validation_fraction(self) -> float:
        """Of rows that may be picked singly."""
        if self.train.patience and self.data.validation_fraction is None:
            return VALIDATION_FRACTION
        return self.data.validation_fraction or 0.0


def check(request: Request) -> None:
    """Raise UsageError or PlanError for the first setting that cannot be, with its value and its bounds."""
    train, optimizer, mesh = request.train, request.train.optimizer, request.mesh
    at_least_one = {"epochs": train.epochs, "batch_size": train.batch_size, "micro_batches": train.micro_batches}
    for name, count in (at_least_one | {"threads": mesh.threads}).items():
        if count < 1:
            raise UsageError(f"{name} = {count}: it must be at least 1")
    if train.batch_size % train.micro_batches:
        raise UsageError(
            f"a batch of {train.batch_size} rows cannot be divided into {train.micro_batches} micro-batches;"
            f" {_nearest_divisors(train.batch_size, train.micro_batches)} would do"
        )
    for kind, name, known in (("optimizer", optimizer.kind, OPTIMIZERS), ("schedule", optimizer.schedule, SCHEDULES)):
        if name not in known:
            raise UsageError(
                unknown(
                    f"unknown {kind} of the learning rate" if kind == "schedule" else "unknown optimizer", name, known
                )
            )
    if optimizer.schedule == "step" and optimizer.step_size < 1:
        raise UsageError("the learning-rate schedule step needs --step-size, the steps between two drops, such as 1000")
    if train.snapshot_steps < -1:
        raise UsageError(
            f"snapshot_steps = {train.snapshot_steps}: write the steps between two, 0 for none, -1 to adapt"
        )
    not_negative = {"patience": train.patience, "checkpoint_steps": train.checkpoint_steps, "seed": request.seed}
    not_negative |= {"warmup_steps": optimizer.warmup_steps, "step_size": optimizer.step_size}
    for name, number in {
        **not_negative,
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm,
    }.items():
        if not 0 <= number < float("inf"):
            raise UsageError(f"{name} = {number}: it must not be negative")
    for name, number in {**not_negative, "epochs": train.epochs, "batch_size": train.batch_size}.items():
        if number > WHOLE_MAX:
            raise UsageError(f"{name} = {number}: it is at most {WHOLE_MAX:,}")
    if not 0 < optimizer.rate < float("inf"):
        raise UsageError(f"rate = {optimizer.rate}: a learning rate is above 0")
    for name in ("momentum", "beta1", "beta2", "smoothing"):
        fraction = getattr(optimizer, name)
        if not 0 <= fraction < 1:
            raise UsageError(f"{name} = {fraction}: it lies from 0 to below 1")
    for name, share in {
        "validation_fraction": request.data.validation_fraction,
        "test_fraction": request.data.test_fraction,
    }.items():
        if share is not None and not 0 <= share <= FRACTION_MAX:
            raise UsageError(f"{name} = {share}: it lies from 0 to {FRACTION_MAX}")
    _check_mesh(request)


PARALLEL: Final = ("model", "data", "hybrid", "auto")


def _check_parallel(request: Request) -> None:
    """That what is spread is known, and that the settings of one kind do not meet the other."""
    mesh, data = request.mesh, request.data_parallel
    if mesh.parallel not in PARALLEL:
        raise UsageError(unknown("unknown kind of parallelism", mesh.parallel, PARALLEL))
    if mesh.parallel == "model":
        given = [name for name in data.__struct_fields__ if getattr(data, name) != getattr(DataParallelPart(), name)]
        if given:
            value = getattr(data, given[0])
            raise UsageError(
                f"data_parallel.{given[0]} = {value}: it goes with data parallelism; say --parallel data, or leave it away"
            )
        return
    if mesh.parallel in ("data", "hybrid"):
        _check_no_cut(mesh)
    _check_data_parallel(request)
    _check_segments(request)


def _check_no_cut(mesh: MeshPart) -> None:
    """With data parallelism each worker holds the whole model, and with hybrid each has nodes of its own, so nothing says where
    layers go."""
    for name, value, instead in (
        ("pins", ", ".join(f"{pattern}={node}" for pattern, node in mesh.pins.items()), "leave --pin away"),
        ("schedule", "" if mesh.schedule == "sync" else mesh.schedule, "say --consistency async instead"),
        ("cut", ", ".join(map(str, mesh.cut[:3])) + " …" if mesh.cut else "", "leave it out of [mesh]"),
    ):
        if value:
            raise UsageError(
                f"{name} = {value}: it is for model parallelism; with --parallel {mesh.parallel} {instead}"
            )


def _check_segments(request: Request) -> None:
    data = request.data_parallel
    if not request.is_hybrid:
        if data.segments:
            raise UsageError(
                f"segments = {data.segments}: it says over how many nodes each worker is cut; say --parallel hybrid, or leave it "
                "away"
            )
        return
    check_segments(data.spec(hybrid=True), cut=True)
    if data.shards and data.shards < request.nodes_per_worker:
        raise UsageError(
            f"shards = {data.shards} with workers of {request.nodes_per_worker} nodes each: every node of a worker speaks to "
            f"shards of its own layers; take at least {request.nodes_per_worker}, or leave it away"
        )


def _check_data_parallel(request: Request) -> None:
    data, pieces = request.data_parallel, request.train.micro_batches
    how = consistency(data.consistency, data.backup)
    codec(data.push_compression), codec(data.pull_compression)
    if data.shard_policy not in POLICIES:
        raise UsageError(unknown("unknown shard policy", data.shard_policy, POLICIES))
    for name in ("push_every", "fetch_every"):
        if getattr(data, name) < 1:
            raise UsageError(f"{name} = {getattr(data, name)}: it must be at least 1")
        if getattr(data, name) > 1 and how.kind != "async":
            raise UsageError(
                f"{name} = {getattr(data, name)} with {how}: it is for async; say --consistency local:H to push every H steps"
            )
    if not math.isfinite(data.local_rate):
        raise UsageError(f"local_rate = {data.local_rate}: it is a number from 0 on")
    for name in (
        "workers",
        "shards",
        "backup",
        "local_rate",
        "warm_start",
        "staleness_max",
        "push_every",
        "fetch_every",
    ):
        if getattr(data, name) < 0:
            raise UsageError(f"{name} = {getattr(data, name)}: it must not be negative")
        if getattr(data, name) > WHOLE_MAX:
            raise UsageError(f"{name} = {getattr(data, name)}: it is at most {WHOLE_MAX:,}")
    for name in ("local_rate", "warm_start", "staleness_max", "scale_by_staleness"):
        if getattr(data, name) and how.kind != "async":
            raise UsageError(f"{name} = {getattr(data, name)} with {how}: it is for async alone")
    if not 0 <= data.replicas <= REPLICAS_MAX:
        raise UsageError(
            f"replicas = {data.replicas}: each shard lives on 1 node or on {REPLICAS_MAX}; 0 takes {REPLICAS_MAX} where there "
            "is room for it"
        )
    if how.kind == "sync" and request.train.optimizer.clip_norm:
        raise UsageError(
            f"clip_norm = {request.train.optimizer.clip_norm:g} with sync: no shard sees the whole gradient; leave it away, or "
            "use async, ssp or local, where each worker clips its own"
        )
    if not data.workers:
        return
    if data.backup >= data.workers:
        raise UsageError(
            f"backup = {data.backup} with {data.workers} worker{'s' * (data.workers > 1)}: a step needs at least one gradient, "
            f"so it is from 0 to {data.workers - 1}"
        )
    if how.kind == "sync" and pieces % data.workers:
        ways = shareable(request.train.batch_size, pieces, data.workers)
        raise UsageError(f"{data.workers} workers cannot share the {pieces} micro-batches of a step evenly: {ways}")


def settled(request: Request, *, ordered: bool, validated: bool) -> Request:
    """The request with both fractions given, now that the data is known.

    ordered: its rows follow one another, as those of a text. validated: it has a part of its own to validate on. Raises
    UsageError where something is to be monitored and nothing is left to monitor it on.
    """
    data = request.data
    if validated:
        validation = 0.0
    elif ordered and data.validation_fraction is None:
        validation = VALIDATION_FRACTION
    else:
        validation = request.validation_fraction
    testing = data.test_fraction
    if testing is None:
        testing = 0.0 if ordered or validated else TEST_FRACTION
    looking = "monitor" if request.train.monitor else "patience" if request.train.patience else ""
    if looking and not validation and not validated:
        value = request.train.monitor or request.train.patience
        raise UsageError(
            f"{looking} {value} looks at validation rows, and there are none; say --validation-fraction 0.1"
        )
    given = msgspec.structs.replace(data, validation_fraction=validation, test_fraction=testing)
    return msgspec.structs.replace(request, data=given)


def _check_mesh(request: Request) -> None:
    mesh = request.mesh
    _check_parallel(request)
    check_schedule(mesh.schedule, request.train.micro_batches)
    if isinstance(mesh.nodes, int) and mesh.nodes < 0:
        raise PlanError(f"nodes = {mesh.nodes}: a number of nodes is at least 1, or 0 for every node that has room")
    if isinstance(mesh.nodes, list) and len(set(mesh.nodes)) != len(mesh.nodes):
        raise PlanError(f"nodes = {', '.join(mesh.nodes)}: a node is named twice")
    if sorted(set(mesh.cut)) != list(range(len(set(mesh.cut)))):
        raise PlanError(
            f"cut = numbers from {min(mesh.cut)} to {max(mesh.cut)}: each op's node by its number, 0, 1, … without a gap; "
            "leave cut out to have it cut anew"
        )
    if isinstance(request.data.scale, str) and request.data.scale not in ("auto", "none"):
        raise UsageError(f"scale = {request.data.scale!r}: write auto, none, or a number to multiply with")
    _ = request.memory_bytes_max
    _ = request.image_size
    if request.data.context < 0:
        raise UsageError(
            f"context = {request.data.context}: a row of text has at least 1 character, or 0 for the model's"
        )


def _nearest_divisors(number: int, near: int) -> str:
    below = next(d for d in range(min(near, number), 0, -1) if number % d == 0)
    above = next((d for d in range(near + 1, number + 1) if number % d == 0), None)
    return f"{below}" if above is None else f"{below} or {above}"
