"""What the daemon and an executor say to each other over their socket pair.

Frames are a 4-byte little-endian length and a MessagePack array whose first item is the message's number. Tensors do not
travel here: they lie in the arena, and `transfer` (an index into `job.segment.transfers`) with `micro_batch` names the place
(see `train.frames`). Micro-batches are numbered from 0 on through all commands of one start of a job: training of s steps
takes s · micro_batches numbers, an evaluation ⌈rows / rows_per_micro_batch⌉. Both ends count
alike. The coordinator's commands and what they answer are in `job.script`.
"""

from __future__ import annotations

import msgspec

from p2pnn.job.script import Checkpoint, Done, Evaluate, Finish, Predict, Progress, Restore, Sample, Train


class _Message(msgspec.Struct, array_like=True):
    pass


# daemon → executor


class Prepare(_Message, tag=1):
    """Load everything and answer Prepared (or Failed). `plan` is a MessagePack `job.plan.Plan`, `checkpoint` a MessagePack
    `job.checkpoint.Manifest` or empty; all blobs that either names, and the data chunks this node reads, lie in `blobs`.
    The arena's descriptor and the socket's are given on the command line. spans: where in the arena, behind the tensors, the
    ring of spans begins (`job.spans`), snapshots: where the counter and the slots of snapshots do (`train.cuts`); −1 for none."""

    spec_path: str
    plan: bytes
    node_index: int
    blobs: str
    checkpoint: bytes = b""
    spans: int = -1
    snapshots: int = -1


class Arrived(_Message, tag=7):
    """A tensor lies whole in its place in the arena."""

    transfer: int
    micro_batch: int


class Sent(_Message, tag=8):
    """A tensor has left: its place may be overwritten once all of its transfers are sent."""

    transfer: int
    micro_batch: int


class PeerRetired(_Message, tag=9):
    """Node `node_index` has retired all micro-batches below `count`: up to count + frames may be sent to it."""

    node_index: int
    count: int


class PeerSquares(_Message, tag=10):
    """Another node's Squares."""

    node_index: int
    step: int
    squares: list[float]


class Freed(_Message, tag=13):
    """Nobody needs the snapshot in a slot any more: it may be overwritten."""

    slot: int


# executor → daemon


class Prepared(_Message, tag=20):
    """Ready. memory_bytes: everything allocated, arena included."""

    memory_bytes: int


class Send(_Message, tag=21):
    """A tensor lies in its place in the arena and its receiver has room: send it, then say Sent."""

    transfer: int
    micro_batch: int


class Retired(_Message, tag=22):
    """All micro-batches below `count` are done here: tell the nodes that send to this one."""

    count: int


class Squares(_Message, tag=23):
    """Float64 sums of squares of this node's gradients, per parameter it owns, in graph order: for global-norm clipping."""

    step: int
    squares: list[float]


class Snapped(_Message, tag=27):
    """The state after `step` updates lies in a slot; it is the daemon's until Freed."""

    step: int
    slot: int


class Failed(_Message, tag=26):
    """This executor cannot go on and exits: one sentence."""

    error: str


ToExecutor = (
    Prepare | Train | Evaluate | Predict | Sample | Checkpoint | Restore | Finish | Arrived | Sent | PeerRetired | PeerSquares
    | Freed
)  # fmt: skip
FromExecutor = Prepared | Send | Retired | Squares | Snapped | Progress | Done | Failed
