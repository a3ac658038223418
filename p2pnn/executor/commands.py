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
from p2pnn.replication.leases import Wish


class _Message(msgspec.Struct, array_like=True):
    pass


# daemon → executor


class Prepare(_Message, tag=1):
    """Load everything and answer Prepared (or Failed). `plan` is a MessagePack `job.plan.Plan`, `checkpoint` a MessagePack
    `job.checkpoint.Manifest` or empty; all blobs that either names, and the data chunks this node reads, lie in `blobs`.
    The arena's descriptor and the socket's are given on the command line. spans: where in the arena, behind the tensors, the
    ring of spans begins (`job.spans`), or behind all else where shards are served; snapshots: where the counter and the slots of
    snapshots do (`train.cuts`); −1 for none.
    role: `compute`, or `serve` for the shards of the parameter server that node_index holds. landings: where in the
    arena of a data-parallel run's worker the landing places begin (`ps.layout`); −1 in any other. job, generation: of the
    start."""

    spec_path: str
    plan: bytes
    node_index: int
    blobs: str
    checkpoint: bytes = b""
    spans: int = -1
    snapshots: int = -1
    role: str = "compute"
    landings: int = -1
    job: str = ""
    generation: int = 0


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


class Answered(_Message, tag=14):
    """To a worker: a shard's answer, as `wire.Values` or `wire.Pushed` brought it. landed: its values lie in the landing place of
    the shard whose turn it is, nbytes of them, which is the executor's until it lends it again; else they were dropped, or there
    are none."""

    shard: int
    sequence: int
    request: int
    generation: int
    refusal: str
    log_number: int
    has_values: bool
    version: int = 0
    clock: int = 0
    whole: bool = True
    number: int = 0
    landed: bool = False
    nbytes: int = 0
    lately: int = 0


class Left(_Message, tag=15):
    """To a worker: the bytes of the push part numbered `token` have left."""

    token: int


class PushArrived(_Message, tag=16):
    """To a server: a part of a push lies whole in its slot (`ps.layout`); or it was known, so that its body was dropped
    (`ps.gate`). misfit: how many bytes came in place of the part's own; they were dropped. −1 where that is not so. by: the
    generation of the shard's configuration by which the worker sends; in Fetched likewise."""

    shard: int
    worker: int
    sequence: int
    part: int
    based_on: int
    based_clock: int
    fetch: bool
    have: int
    mark: int = 0
    by: int = 0
    misfit: int = -1


class Fetched(_Message, tag=17):
    """To a server: a worker's `wire.Fetch`."""

    shard: int
    worker: int
    request: int
    have: int
    after: int
    by: int = 0
    returns: int = 0


class Marked(_Message, tag=18):
    """To a server: a worker's `wire.Mark`."""

    shard: int
    worker: int
    sequence: int


class AnswerLeft(_Message, tag=19):
    """To a server: the bytes of the answer numbered `token` have left, or will not leave."""

    token: int


class Assigned(_Message, tag=33):
    """To both executors of a data-parallel run: who has which role now, newer than what they had. assignment: MessagePack of a
    `job.assignment.Assignment`."""

    assignment: bytes


class Replicated(_Message, tag=34):
    """To a server: a message of another replica of a shard, from node `source` of the plan. body: of a message that has one,
    except a Forward's, which lies in its push's slot."""

    source: int
    message: bytes
    body: bytes = b""


class ReplicaLeft(_Message, tag=35):
    """To a server: the bytes of the Replicate numbered `token` have left, or will not leave."""

    token: int


class Leased(_Message, tag=40):
    """To a worker: `wire.Leased`."""

    number: int
    ranges: tuple[tuple[int, int], ...]
    trained_below: int
    again: int
    never: int = 0


class LeasesWished(_Message, tag=41):
    """To a server: a worker's `wire.LeaseWish`."""

    shard: int
    worker: int
    wish: Wish


class Dealt(_Message, tag=46):
    """Among the nodes of a worker that is cut over several, both ways: the first has `wire.Dealt` sent to the others."""

    first: int
    ranges: tuple[tuple[int, int], ...]
    trained_below: int


class Decided(_Message, tag=47):
    """The same: another has `wire.Decided` sent to the first. position: of the sender in the replica, to the first alone."""

    steps: int
    back: tuple[tuple[int, int], ...] = ()
    bad: tuple[tuple[int, int], ...] = ()
    position: int = 0


class Rested(_Message, tag=42):
    """To a server: a worker's `wire.Rest`."""

    shard: int
    worker: int
    pushes: int


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
    """Float64 sums of squares of this node's gradients, per parameter it owns, in graph order: for global-norm clipping. None at
    all, of a worker that is cut over nodes: its shards have set this one aside."""

    step: int
    squares: list[float]


class Snapped(_Message, tag=27):
    """The state after `step` updates lies in a slot; it is the daemon's until Freed."""

    step: int
    slot: int


class PushPart(_Message, tag=28):
    """Of a worker: send the arena's bytes [offset, offset + nbytes) as a part of a push to a shard, then say Left. needed:
    the lower, the sooner."""

    token: int
    shard: int
    sequence: int
    part: int
    offset: int
    nbytes: int
    based_on: int
    based_clock: int
    fetch: bool
    have: int
    needed: int
    mark: int = 0
    by: int = 0


class FetchValues(_Message, tag=29):
    """Of a worker: send a `wire.Fetch` to a shard."""

    shard: int
    request: int
    have: int
    after: int
    by: int = 0
    returns: int = 0


class Lend(_Message, tag=30):
    """Of a worker: values of the shard may be received into the landing place of it whose turn it is (`ps.layout`), once."""

    shard: int


class SendMark(_Message, tag=31):
    """Of a worker: send a `wire.Mark` to all shards that it speaks to."""

    sequence: int


class SendAnswer(_Message, tag=32):
    """Of a server: send an answer to a worker: with values, the arena's bytes [offset, offset + nbytes), then say AnswerLeft;
    with nbytes = 0 without. acknowledged: pushes of this worker up to this number are decided, so their slots are free. by: the
    generation of the shard's configuration in which that is said."""

    token: int
    shard: int
    worker: int
    sequence: int
    request: int
    refusal: str
    log_number: int
    acknowledged: int
    offset: int = 0
    nbytes: int = 0
    version: int = 0
    clock: int = 0
    whole: bool = True
    number: int = 0
    by: int = 0
    lately: int = 0


class Replicate(_Message, tag=36):
    """Of a server: send a message to another replica of a shard, at node `target` of the plan, then say ReplicaLeft where token
    is not 0. Its body is the arena's bytes [offset, offset + nbytes), or `body`."""

    token: int
    target: int
    message: bytes
    offset: int = 0
    nbytes: int = 0
    body: bytes = b""


class Recall(_Message, tag=60):
    """Of a server: nobody waits any more for what these Replicates carry to node `target` of the plan, and their places in the
    arena are wanted: say ReplicaLeft of each at once."""

    target: int
    tokens: list[int]


class Applied(_Message, tag=37):
    """Of a server that is not the primary: a worker's pushes up to this number are applied here, so their slots are free."""

    shard: int
    worker: int
    sequence: int


class ProposeConfiguration(_Message, tag=38):
    """Of a server: a shard's primary wants this configuration of its replicas; empty: a replica wants to be told what holds.
    configuration: MessagePack of `replication.configuration.Configuration`."""

    shard: int
    configuration: bytes = b""


class WishLeases(_Message, tag=43):
    """Of a worker: send a `wire.LeaseWish` to shard 0, which deals out the data."""

    wish: Wish


class SendRest(_Message, tag=44):
    """Of a worker: send a `wire.Rest` to all shards that it speaks to."""

    pushes: int


class SendLeased(_Message, tag=45):
    """Of a server: send a `wire.Leased` to a worker."""

    shard: int
    worker: int
    number: int
    ranges: tuple[tuple[int, int], ...]
    trained_below: int
    again: int
    never: int = 0


class Failed(_Message, tag=26):
    """This executor cannot go on and exits: one sentence. is_lost: only what it holds is lost; a start that others hold too may
    go on without this node."""

    error: str
    is_lost: bool = False


ToExecutor = (
    Prepare | Train | Evaluate | Predict | Sample | Checkpoint | Restore | Finish | Arrived | Sent | PeerRetired | PeerSquares
    | Freed | Answered | Left | PushArrived | Fetched | Marked | AnswerLeft | Assigned | Replicated | ReplicaLeft
    | Leased | LeasesWished | Rested | Dealt | Decided
)  # fmt: skip
FromExecutor = (
    Prepared | Send | Retired | Squares | Snapped | Progress | Done | Failed
    | PushPart | FetchValues | Lend | SendMark | SendAnswer | Replicate | Recall | Applied | ProposeConfiguration
    | WishLeases | SendRest | SendLeased | Dealt | Decided
)  # fmt: skip
