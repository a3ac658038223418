"""The coordinator's script of a run: commands that every executor of the job gets in the same order, and what they answer.

Executors follow the script alone, so coordination is never on the path of a micro-batch. The coordinator sends commands
ahead of need; a run is paused, stopped early or cut for a checkpoint where the script says so, at the same step on all nodes.
They travel to peers as the bytes of `wire.messages.Command` and `Report`, and over the executor's socket pair as they are.
"""

from __future__ import annotations

import msgspec

from p2pnn.types import BlobId


class _Message(msgspec.Struct, array_like=True):
    pass


class Train(_Message, tag=2):
    """Train up to (not including) step `until_step`; answer Done.

    snapshot_every: copy the state after each update whose number it divides; 0 for never.
    """

    sequence: int
    until_step: int
    snapshot_every: int = 0


class Evaluate(_Message, tag=3):
    """One forward pass over a split (`validation` or `test`); answer Done with an Evaluation. gone: numbers of the workers of a
    data-parallel run that take no part any more; the others share the split."""

    sequence: int
    split: str
    gone: tuple[int, ...] = ()


class Predict(_Message, tag=4):
    """Run the named outputs over the split `test` and store them as blobs; answer Done with Predictions."""

    sequence: int


class Sample(_Message, tag=12):
    """Run the named outputs over one row that begins with `tokens`; answer Done.

    The node that has the scores answers with those of the last token's position, raw float32, the others with nothing.
    """

    sequence: int
    tokens: tuple[int, ...]


class Checkpoint(_Message, tag=5):
    """Write this node's part, after all earlier commands; answer Done with a Part, or with `error` (training goes on). gone: as
    of Evaluate: the least worker that is left writes the parameters."""

    sequence: int
    gone: tuple[int, ...] = ()


class Restore(_Message, tag=11):
    """Load parameters and state (not the optimizer's) from a checkpoint, by name; answer Done.

    parts: safetensors blobs that this node holds or has fetched. For evaluating the best epoch after the last one.
    """

    sequence: int
    parts: tuple[str, ...]


class Finish(_Message, tag=6):
    """Nothing more will come: exit with status 0."""


class ShardReport(msgspec.Struct, frozen=True, array_like=True):
    """What a shard has seen so far. staleness: updates that a push was behind → how many pushes. taken: pushes applied, by
    worker. refused: (worker, name of a `ps.messages.Refusal`, how often). Bytes are those of bodies, in and out. queued:
    pushes that wait. zeros: worker → how many of its pushes in a row, to the newest, had no element other than zero. Of a shard
    that lives on several nodes the primary tells: in_sync: their indices in the plan, the primary's first; learners: those that
    catch up; lag: decisions that not all in sync hold yet; copied_bytes: sent to the others."""

    shard: int
    version: int
    staleness: dict[int, int]
    taken: dict[int, int]
    refused: tuple[tuple[int, str, int], ...]
    set_aside: tuple[int, ...]
    received_bytes: int
    sent_bytes: int
    queued: int
    zeros: dict[int, int] = {}
    in_sync: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    lag: int = 0
    copied_bytes: int = 0


class Health(msgspec.Struct, frozen=True, array_like=True):
    """How a compute process's part learns, since its start; the newest says all (see `job.learning`).

    begun: (sum over rows of the loss, rows) of its first steps. still: parameters, by their place in the graph, whose gradient
    has long been zero → since which step; dead: the same of rectifiers, by op, whose outputs have been. not_finite: the first
    step whose loss was no number, or −1.
    """

    begun: tuple[float, int] = (0.0, 0)
    still: dict[int, int] = {}
    dead: dict[int, int] = {}
    not_finite: int = -1


class Progress(_Message, tag=24):
    """Sent at most every 0.2 s. Sums are since the last Progress; loss and metrics only from nodes that hold them.

    step: steps done. losses: (sum over rows of the loss, rows). metrics: name → (sum, count).
    compute_s, wall_s: seconds spent computing and passed, since the last Progress. snapshots: how many were taken since then;
    snapshot_s: seconds for copying them and sending them to another node. served: what shards on this node say of themselves.
    health: None of a process that computes nothing.
    """

    step: int
    losses: tuple[float, int]
    metrics: dict[str, tuple[float, float]]
    compute_s: float
    wall_s: float
    snapshots: int = 0
    snapshot_s: float = 0.0
    served: tuple[ShardReport, ...] = ()
    health: Health | None = None


class Done(_Message, tag=25):
    """The command numbered `sequence` is done.

    result: MessagePack of Evaluation, `job.checkpoint.Part` or Predictions, the scores of a Sample, or empty. error: a
    checkpoint that failed. uneven: to a Train, where batches are leased: how many of its epoch were trained more often than once
    by then, by whomever, and how many were given up, since their pushes were refused twice for what they held.
    """

    sequence: int
    result: bytes = b""
    error: str = ""
    uneven: tuple[int, int] = (0, 0)


Command = Train | Evaluate | Predict | Sample | Checkpoint | Restore | Finish
Report = Progress | Done


class Evaluation(msgspec.Struct, frozen=True):
    """Sums over the whole split; rows are counted by the node of the first loss alone, so that nodes add up."""

    loss_sum: float = 0.0
    rows: int = 0
    metrics: dict[str, tuple[float, float]] = {}


class Predictions(msgspec.Struct, frozen=True):
    """Named output → blobs of its rows in order, as data chunks with their dtype and row shape."""

    outputs: dict[str, tuple[str, tuple[int, ...], tuple[tuple[BlobId, int], ...]]] = {}
