"""What a person asks for: the job, its data and its settings, resolved to the last default.

A spec is self-contained: with the blobs that it names, any node can run the job or go on with it. It is stored and sent
as MessagePack (maps with field names; fields may be added at the end, with a default).
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.errors import UsageError
from p2pnn.model.graph import Graph
from p2pnn.types import BlobId

FORMAT: Final = 1

OPTIMIZERS: Final = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
SCHEDULES: Final = ("constant", "step", "cosine")
IN_FLIGHT_MAX: Final = 64
"""Mini-batches in flight: each takes a frame of memory on every node, and more than a few per node bring nothing."""

JOB_KINDS: Final = ("train", "evaluate", "predict", "sample")


def in_flight(schedule: str) -> int:
    """K of the schedule `async:K`, 0 of `sync`. Raises UsageError for anything else."""
    if schedule == "sync":
        return 0
    kind, _, number = schedule.partition(":")
    count = int(number) if number.isascii() and number.isdigit() and len(number) < 4 else 0
    if kind != "async" or not 1 <= count <= IN_FLIGHT_MAX:
        raise UsageError(
            f"schedule = {schedule[:40]!r}: write sync, or async:K for K mini-batches in flight, from 1 to {IN_FLIGHT_MAX}, "
            "such as async:2"
        )
    return count


def check_schedule(schedule: str, micro_batches: int, kind: str = "train") -> None:
    """Raise UsageError for a schedule that there is not, or that does not go with the kind of job or its micro-batches."""
    if not in_flight(schedule):
        return
    if kind != "train":
        raise UsageError(f"schedule = {schedule}: it is for training; a job of kind {kind} is always sync")
    if micro_batches != 1:
        raise UsageError(
            f"schedule = {schedule} keeps the nodes busy with whole mini-batches, but micro_batches = {micro_batches}: "
            "leave that away or write 1"
        )


class Chunk(msgspec.Struct, frozen=True):
    """A run of rows of one column, stored as a blob (see `data.chunks` for its bytes)."""

    blob: BlobId
    rows: int


class Column(msgspec.Struct, frozen=True):
    """One named array of the data: `rows` rows of `shape` (without the row axis), in chunks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Dataset(msgspec.Struct, frozen=True):
    """Rows that belong together over several columns. `classes` names the labels 0, 1, … where they were text."""

    name: str
    rows: int
    columns: tuple[Column, ...]
    classes: tuple[str, ...] = ()
    format: int = FORMAT


class Split(msgspec.Struct, frozen=True):
    """Some rows of a dataset: those that a permutation of all rows, keyed by `seed`, puts at [start, stop).

    With seed −1 there is no permutation: rows start … stop − 1.
    """

    dataset: Dataset
    start: int
    stop: int
    seed: int = -1

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Optimizer(msgspec.Struct, frozen=True):
    """kind: one of OPTIMIZERS. Formulas are PyTorch's (v = μv + g; Adam's ε after the corrected root).

    schedule: `constant`; `step` (rate · gamma^(step // step_size)); `cosine` (to 0 at the last step).
    warmup_steps: the rate rises linearly from rate/warmup_steps to rate before the schedule starts.
    clip_norm: gradients are scaled so that their global 2-norm is at most this; 0 for no clipping. With several mini-batches
    in flight (`async:K`, K ≥ 2) each node clips by the norm of its own gradients. smoothing: how much RMSProp keeps
    of its running mean of squares.
    """

    kind: str = "adam"
    rate: float = 1e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    step_size: int = 0
    gamma: float = 0.1
    clip_norm: float = 0.0
    smoothing: float = 0.99


class DataParallel(msgspec.Struct, frozen=True):
    """How a run cuts its data over model replicas and keeps its parameters on shards; see `ps.consistency` for the words.

    consistency: `async`, `ssp:S`, `sync` or `local:H`. workers: model replicas, shards: of the parameter server; 0 lets the
    planner choose. replicas: nodes that hold each shard, 1 or 2; 0 for 2 where there is room. cut: one of
    `ps.sharding.POLICIES`. push, pull: compressions of gradients and of parameters. segments: nodes that each model replica is
    cut over; 1 but with parallel = hybrid, where 0 lets the planner choose. The others are `ps.consistency.Settings`'s.
    """

    consistency: str = "async"
    backup: int = 0
    workers: int = 0
    shards: int = 0
    replicas: int = 0
    cut: str = "equal"
    push: str = "float32"
    pull: str = "float32"
    n_push: int = 1
    n_fetch: int = 1
    local_rate: float = 0.0
    warm_start: int = 0
    staleness_max: int = 0
    scale_by_staleness: bool = False
    segments: int = 1


class Pin(msgspec.Struct, frozen=True):
    """Ops whose name, or whose layer's name, matches the shell-style `pattern` stay on the node called `node`."""

    pattern: str
    node: str


class Sampling(msgspec.Struct, frozen=True):
    """How a job of kind `sample` goes on with a text; see `job.sampling`. prompt: its last tokens; length: how many to make.

    temperature: 0 takes the likeliest always. top_k: how many are drawn from; 0 for all.
    """

    prompt: tuple[int, ...]
    length: int = 500
    temperature: float = 0.8
    top_k: int = 0
    seed: int = 0


class JobSpec(msgspec.Struct, frozen=True):
    """Everything that decides what a job computes and where.

    inputs: graph input → column. train, validation, test: None where there is none (evaluate and predict use only
    `test`, sample none of them). node_count: 0 for every node that has room. patience: epochs without a better monitored
    value before the run stops; 0 never stops early. monitor: a metric's name or `loss`, on the validation split.
    checkpoint_steps: 0 for once per epoch. snapshot_steps: steps from one snapshot in memory to the next; −1 for as few as cost
    5 % of the time, 0 for none. initial: safetensors blobs to start from, by parts; () to draw from the seed.
    schedule: `sync`, or `async:K` with K mini-batches in flight (then micro_batches is 1).
    threads: BLAS threads per executor; part of the numeric fingerprint.
    cut: the number of each op's node, in graph order, as an earlier run had it; () lets the planner cut.
    request: the job file that led here, as text, so that whoever fetches the results gets it with them. data: of parallel =
    data and hybrid.
    """

    name: str
    graph: Graph
    inputs: dict[str, str]
    kind: str = "train"
    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None
    seed: int = 0
    epochs: int = 10
    batch_size: int = 128
    micro_batches: int = 4
    optimizer: Optimizer = Optimizer()
    parallel: str = "model"
    schedule: str = "sync"
    node_count: int = 0
    nodes: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    patience: int = 0
    monitor: str = ""
    checkpoint_steps: int = 0
    initial: tuple[BlobId, ...] = ()
    threads: int = 1
    memory_bytes_max: int = 0
    format: int = FORMAT
    request: str = ""
    sampling: Sampling | None = None
    cut: tuple[int, ...] = ()
    snapshot_steps: int = -1
    data: DataParallel | None = None

    @property
    def forward_only(self) -> bool:
        """Whether the job runs the ops of the named outputs, not those of losses and metrics."""
        return self.kind in ("predict", "sample")

    @property
    def in_flight(self) -> int:
        """Mini-batches in flight: K of `async:K`, 0 for `sync`."""
        return in_flight(self.schedule)

    @property
    def rows_per_micro_batch(self) -> int:
        return self.batch_size // self.micro_batches

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: rows that do not fill a batch are dropped and counted."""
        return self.train.rows // self.batch_size if self.train else 0

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch
