"""The closed, append-only list of everything that peers say to each other.

A message is a MessagePack array whose first item is its number (`tag`). Numbers are never reused; new fields come only
at the end, with a default, so that an older node reads what it knows and ignores the rest. `proto/README.md` describes
every one for strangers, and a test compares that page with this file. Fields of type bytes carry records of higher
layers that this layer never opens. Messages with BODY = True are followed by raw bytes outside MessagePack.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

import msgspec

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1


class CloseReason(IntEnum):
    """Why a link ends. 1–9: nobody erred; 10–29: the sender of Close blames its peer's bytes; 30–: refused at the door."""

    DONE = 1
    LEAVING = 2
    REPLACED = 3  # both sides dialled; the smaller node id's link stays
    FAILED = 4  # this side has a fault of its own
    MALFORMED = 10  # magic, checksum, MessagePack or a field
    TOO_LARGE = 11
    UNEXPECTED = 12  # legal bytes at the wrong time, or a body that nobody asked for
    TOO_SLOW = 13  # a frame or the handshake missed its deadline
    SILENT = 14  # no frame within the idle limit, pings unanswered
    OVERFLOW = 15  # the peer does not read: our bounded queue is full
    VERSION = 30
    WRONG_CLUSTER = 31
    SELF = 32
    NO_SESSION = 33  # a data link that names no living control session
    TOO_MANY = 34
    REMOVED = 35


class LinkKind(IntEnum):
    CONTROL = 0
    DATA = 1


class Message(msgspec.Struct, array_like=True):
    """Base of all messages."""

    BODY: ClassVar[bool] = False


# --- links: 1–9


class Hello(Message, tag=1):
    """First message of the dialling side. session: empty on a control link; on a data link the one of its Welcome.

    cluster: the cluster's name; a listener of another one refuses. port: where the dialling node listens. boot: a random
    number per daemon start, so that a restarted node is known as such.
    """

    version_min: int
    version_max: int
    link: LinkKind
    node: str
    name: str
    cluster: str
    port: int
    boot: str
    session: str = ""
    software: str = ""


class Welcome(Message, tag=2):
    """The listening side's answer: the version both will speak, and the session that data links must name."""

    version: int
    node: str
    name: str
    boot: str
    session: str
    software: str = ""


class Close(Message, tag=3):
    """The last message on a link. text: one sentence for a person."""

    reason: int
    text: str = ""


class Ping(Message, tag=4):
    nonce: int


class Pong(Message, tag=5):
    nonce: int


# --- cluster: 10–19


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A node as others should know it. hosts: where it was reached or says it is."""

    node: str
    name: str
    host: str
    port: int
    boot: str


class Roster(Message, tag=10):
    """All members that the sender has a living control link to; sent after each Welcome and at each change."""

    members: tuple[Member, ...]


# --- blobs: 20–24. Content-addressed files: specs, data chunks, checkpoint parts


class BlobRequest(Message, tag=20):
    """Ask for `length` bytes at `offset`; answered by BlobPiece or BlobMissing with the same request number."""

    request: int
    blob: str
    offset: int
    length: int


class BlobPiece(Message, tag=21):
    """Body: the bytes asked for, fewer only at the blob's end. size: the whole blob's."""

    BODY: ClassVar[bool] = True
    request: int
    blob: str
    offset: int
    size: int


class BlobMissing(Message, tag=22):
    request: int
    blob: str
    text: str = ""


# --- profiles and links: 25–29


class ProfileRequest(Message, tag=25):
    request: int


class ProfileReply(Message, tag=26):
    """profile: MessagePack of plan.profile.Profile."""

    request: int
    profile: bytes


class LinkProbe(Message, tag=27):
    """Body: as many bytes as the sender likes, within the body limit; the receiver drops them and answers LinkProbed."""

    BODY: ClassVar[bool] = True
    request: int


class LinkProbed(Message, tag=28):
    request: int


# --- jobs: 30–59. coordinator: the node that took the submission. generation: higher for each start of a job


class Reserve(Message, tag=30):
    """Coordinator asks for the node's one place. Answered by Granted, at once or when the place is free; first Waiting."""

    job: str
    generation: int
    name: str = ""


class Waiting(Message, tag=31):
    """The place is taken by job `behind`; this one is `position` in the queue (1 is next)."""

    job: str
    generation: int
    behind: str
    position: int


class Granted(Message, tag=32):
    job: str
    generation: int


class Release(Message, tag=33):
    """Coordinator gives the place back, or withdraws its Reserve; an executor that still runs is ended."""

    job: str
    generation: int


class Prepare(Message, tag=34):
    """Fetch what is needed (spec, checkpoint parts, data chunks; from any of `sources`), start an executor, answer Prepared.

    nodes: the plan's nodes, in its order. keep: blobs to fetch and keep although this node does not read them.
    """

    job: str
    generation: int
    spec: str
    plan: bytes
    checkpoint: bytes
    nodes: tuple[str, ...]
    index: int
    sources: tuple[str, ...]
    keep: tuple[str, ...] = ()


class Preparing(Message, tag=35):
    """How far Prepare is: bytes fetched of bytes needed."""

    job: str
    generation: int
    fetched_bytes: int
    total_bytes: int


class Prepared(Message, tag=36):
    job: str
    generation: int
    memory_bytes: int


class Command(Message, tag=37):
    """A MessagePack executor command (Train, Evaluate, Predict, Checkpoint, Finish), for the executor, in this order."""

    job: str
    generation: int
    command: bytes


class Report(Message, tag=38):
    """A MessagePack executor message (Progress, Done) for the coordinator."""

    job: str
    generation: int
    report: bytes


class JobFailed(Message, tag=39):
    """Node to coordinator: the job cannot go on here. text: one sentence, without the node's name."""

    job: str
    generation: int
    text: str


class Retired(Message, tag=40):
    """Node to the nodes that send it tensors: micro-batches below `count` are done here."""

    job: str
    generation: int
    index: int
    count: int


class Squares(Message, tag=41):
    """Node to the job's other nodes, for global-norm clipping: float64 sums of squares per parameter."""

    job: str
    generation: int
    index: int
    step: int
    squares: tuple[float, ...]


class Keep(Message, tag=42):
    """Coordinator to a buddy: fetch these blobs from `source`, verify and keep them; answered by Kept."""

    job: str
    request: int
    blobs: tuple[str, ...]
    source: str


class Kept(Message, tag=43):
    """error: empty, or one sentence."""

    job: str
    request: int
    error: str = ""


class Record(Message, tag=44):
    """The job as others should remember it, so that it can be shown and resumed from any peer.

    record: MessagePack of job.records.JobRecord. A receiver keeps the one with the highest (generation, revision).
    """

    job: str
    generation: int
    revision: int
    record: bytes


class RecordRequest(Message, tag=45):
    """Ask a peer for the job records it has (all when job is empty); it answers with Record messages, then RecordsEnd."""

    request: int
    job: str = ""


class RecordsEnd(Message, tag=46):
    request: int


# --- tensors: 60–69, on data links only


class Tensor(Message, tag=60):
    """Body: a tensor of a running job, raw little-endian, C order. transfer: its number in the plan (job.segment)."""

    BODY: ClassVar[bool] = True
    job: str
    generation: int
    transfer: int
    micro_batch: int


AnyMessage = (
    Hello | Welcome | Close | Ping | Pong | Roster | BlobRequest | BlobPiece | BlobMissing
    | ProfileRequest | ProfileReply | LinkProbe | LinkProbed
    | Reserve | Waiting | Granted | Release | Prepare | Preparing | Prepared | Command | Report | JobFailed
    | Retired | Squares | Keep | Kept | Record | RecordRequest | RecordsEnd | Tensor
)  # fmt: skip
