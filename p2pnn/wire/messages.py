"""The closed, append-only list of everything that peers say to each other.

A message is a MessagePack array whose first item is its number (`tag`). Numbers are never reused; new fields come only
at the end, with a default, so that an older node reads what it knows and ignores the rest. `proto/README.md` describes
every one for strangers, and a test compares that page with this file. Fields of type bytes carry records of higher
layers that this layer never opens. Messages with BODY = True are followed by raw bytes outside MessagePack. The types of fields
are in `wire.fields`, the messages of membership (10–19) in `wire.membership`, of jobs (30–59) in `wire.jobs`, of the charter
(70–89) in `wire.charter`, of snapshots (50–53, 61) in `wire.cuts`, of
parameter servers (62–64, 106, 107, 110–112) in `wire.servers`, of replicated shards (95–105) in `wire.replication`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from p2pnn.wire.charter import CharterPiece as CharterPiece
from p2pnn.wire.charter import CharterWanted as CharterWanted
from p2pnn.wire.charter import Handover as Handover
from p2pnn.wire.charter import Held as Held
from p2pnn.wire.charter import Lead as Lead
from p2pnn.wire.charter import PreVote as PreVote
from p2pnn.wire.charter import PreVoted as PreVoted
from p2pnn.wire.charter import Vote as Vote
from p2pnn.wire.charter import Voted as Voted
from p2pnn.wire.cuts import CUTS_MAX as CUTS_MAX
from p2pnn.wire.cuts import CutsHeld as CutsHeld
from p2pnn.wire.cuts import CutsWanted as CutsWanted
from p2pnn.wire.cuts import PartMade as PartMade
from p2pnn.wire.cuts import PartWanted as PartWanted
from p2pnn.wire.cuts import Snapshot as Snapshot
from p2pnn.wire.fields import BLOBS_MAX as BLOBS_MAX
from p2pnn.wire.fields import RECORD_BYTES_MAX as RECORD_BYTES_MAX
from p2pnn.wire.fields import SENTENCE_CHARS_MAX as SENTENCE_CHARS_MAX
from p2pnn.wire.fields import VERSION_MAX as VERSION_MAX
from p2pnn.wire.fields import VERSION_MIN as VERSION_MIN
from p2pnn.wire.fields import (
    BlobText,
    Count,
    JobText,
    Length,
    Name,
    NodeText,
    Packed,
    Port,
    Sentence,
    Software,
    Version,
)
from p2pnn.wire.fields import Message as Message
from p2pnn.wire.identity import AuthorityHeld as AuthorityHeld
from p2pnn.wire.identity import AuthorityKey as AuthorityKey
from p2pnn.wire.identity import AuthorityWanted as AuthorityWanted
from p2pnn.wire.identity import Join as Join
from p2pnn.wire.identity import Joined as Joined
from p2pnn.wire.identity import Offer as Offer
from p2pnn.wire.identity import Petition as Petition
from p2pnn.wire.identity import Ruling as Ruling
from p2pnn.wire.jobs import Adopt as Adopt
from p2pnn.wire.jobs import Adopted as Adopted
from p2pnn.wire.jobs import Answered as Answered
from p2pnn.wire.jobs import Ask as Ask
from p2pnn.wire.jobs import Command as Command
from p2pnn.wire.jobs import Follow as Follow
from p2pnn.wire.jobs import Granted as Granted
from p2pnn.wire.jobs import Happened as Happened
from p2pnn.wire.jobs import JobFailed as JobFailed
from p2pnn.wire.jobs import Keep as Keep
from p2pnn.wire.jobs import Kept as Kept
from p2pnn.wire.jobs import Prepare as Prepare
from p2pnn.wire.jobs import Prepared as Prepared
from p2pnn.wire.jobs import Preparing as Preparing
from p2pnn.wire.jobs import Record as Record
from p2pnn.wire.jobs import RecordRequest as RecordRequest
from p2pnn.wire.jobs import Release as Release
from p2pnn.wire.jobs import Report as Report
from p2pnn.wire.jobs import Reserve as Reserve
from p2pnn.wire.jobs import Retired as Retired
from p2pnn.wire.jobs import Squares as Squares
from p2pnn.wire.jobs import Traced as Traced
from p2pnn.wire.jobs import Waiting as Waiting
from p2pnn.wire.membership import Ack as Ack
from p2pnn.wire.membership import Fact as Fact
from p2pnn.wire.membership import Gossip as Gossip
from p2pnn.wire.membership import Life as Life
from p2pnn.wire.membership import Member as Member
from p2pnn.wire.membership import Nack as Nack
from p2pnn.wire.membership import Probe as Probe
from p2pnn.wire.membership import ProbeRequest as ProbeRequest
from p2pnn.wire.membership import Pull as Pull
from p2pnn.wire.membership import Roster as Roster
from p2pnn.wire.membership import Testimony as Testimony
from p2pnn.wire.replication import Append as Append
from p2pnn.wire.replication import Appended as Appended
from p2pnn.wire.replication import Beat as Beat
from p2pnn.wire.replication import Forward as Forward
from p2pnn.wire.replication import Push as Push
from p2pnn.wire.replication import Pushed as Pushed
from p2pnn.wire.replication import StateHeld as StateHeld
from p2pnn.wire.replication import StatePiece as StatePiece
from p2pnn.wire.replication import Superseded as Superseded
from p2pnn.wire.replication import UpdateWanted as UpdateWanted
from p2pnn.wire.servers import Assigned as Assigned
from p2pnn.wire.servers import Dealt as Dealt
from p2pnn.wire.servers import Decided as Decided
from p2pnn.wire.servers import Fetch as Fetch
from p2pnn.wire.servers import Leased as Leased
from p2pnn.wire.servers import LeaseWish as LeaseWish
from p2pnn.wire.servers import Mark as Mark
from p2pnn.wire.servers import Rest as Rest
from p2pnn.wire.servers import ShardWish as ShardWish
from p2pnn.wire.servers import Values as Values


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
    NOT_MEMBER = 36  # its certificate is the cluster's, and the charter does not name it


class LinkKind(IntEnum):
    CONTROL = 0
    DATA = 1


# --- links: 1–9


class Hello(Message, tag=1):
    """First message of the dialling side. session: empty on a control link; on a data link the one of its Welcome.

    cluster: the cluster's name; a listener of another one refuses. port: where the dialling node listens. boot: a random
    number per daemon start, so that a restarted node is known as such.
    """

    version_min: Version
    version_max: Version
    link: LinkKind
    node: NodeText
    name: Name
    cluster: Name
    port: Port
    boot: Name
    session: Name = ""
    software: Software = ""


class Welcome(Message, tag=2):
    """The listening side's answer: the version both will speak, and the session that data links must name."""

    version: Version
    node: NodeText
    name: Name
    boot: Name
    session: Name
    software: Software = ""


class Close(Message, tag=3):
    """The last message on a link. text: one sentence for a person."""

    reason: Count
    text: Sentence = ""


class Ping(Message, tag=4):
    nonce: Count


class Pong(Message, tag=5):
    nonce: Count


# --- blobs: 20–24. Content-addressed files: specs, data chunks, checkpoint parts


class BlobRequest(Message, tag=20):
    """Ask for `length` bytes at `offset`; answered by BlobPiece or BlobMissing with the same request number."""

    request: Count
    blob: BlobText
    offset: Count
    length: Length


class BlobPiece(Message, tag=21):
    """Body: the bytes asked for, fewer only at the blob's end. size: the whole blob's."""

    BODY: ClassVar[bool] = True
    request: Count
    blob: BlobText
    offset: Count
    size: Count


class BlobMissing(Message, tag=22):
    request: Count
    blob: BlobText
    text: Sentence = ""


# --- profiles and links: 25–29


class ProfileRequest(Message, tag=25):
    request: Count


class ProfileReply(Message, tag=26):
    """profile: MessagePack of plan.profile.Profile."""

    request: Count
    profile: Packed


class LinkProbe(Message, tag=27):
    """Body: as many bytes as the sender likes, within the body limit; the receiver drops them and answers LinkProbed."""

    BODY: ClassVar[bool] = True
    request: Count


class LinkProbed(Message, tag=28):
    request: Count


# --- tensors: 60–69, on data links only


class Tensor(Message, tag=60):
    """Body: a tensor of a running job, raw little-endian, C order. transfer: its number in the plan (job.segment)."""

    BODY: ClassVar[bool] = True
    job: JobText
    generation: Count
    transfer: Count
    micro_batch: Count


AnyMessage = (
    Hello | Welcome | Close | Ping | Pong | Offer | Join | Joined
    | Roster | Probe | ProbeRequest | Ack | Nack | Gossip | Pull | Testimony
    | BlobRequest | BlobPiece | BlobMissing
    | ProfileRequest | ProfileReply | LinkProbe | LinkProbed
    | Reserve | Waiting | Granted | Release | Prepare | Preparing | Prepared | Command | Report | JobFailed
    | Retired | Squares | Keep | Kept | Record | RecordRequest | Ask | Answered | Traced
    | CutsWanted | CutsHeld | PartWanted | PartMade | Adopt | Adopted | Happened | Follow | Tensor | Snapshot
    | Values | Fetch | Mark
    | Lead | Held | PreVote | PreVoted | Vote | Voted | CharterPiece | CharterWanted | Handover
    | Petition | Ruling | AuthorityWanted | AuthorityKey | AuthorityHeld
    | Push | Pushed | Forward | Append | Appended | Beat | UpdateWanted | StatePiece | StateHeld | Superseded
    | Assigned | ShardWish | LeaseWish | Leased | Rest | Dealt | Decided
)  # fmt: skip
