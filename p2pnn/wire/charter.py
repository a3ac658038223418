"""The messages by which nodes agree on one document, the charter: 70–89 (`p2pnn.cluster.consensus`).

They are part of the closed list in `wire.messages`, and travel on control links. A charter's version is the pair (`charter_term`,
`revision`), compared in this order; `term` is the sender's own; `cluster` is the id in its charter, empty where it has none,
and a message of another cluster is ignored. What a message says of its sender's charter and vote is on
the sender's disk.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from p2pnn.wire.fields import RECORD_BYTES_MAX, Message, Name, Packed, Sentence

TERM_MAX: Final = 2**31 - 1  # an election a second for 68 years
REVISION_MAX: Final = 2**32 - 1  # with the term above it, a version fits one number of 63 bits: a generation
CHARTER_BYTES_MAX: Final = 256 * 1024
"""The whole charter. It goes to every member at each change, and a decision waits for its fsync: finished jobs leave it."""

CHARTER_PIECE_BYTES: Final = 48 * 1024
"""How much of it one message carries."""

assert CHARTER_PIECE_BYTES <= RECORD_BYTES_MAX

Term = Annotated[int, Meta(ge=0, le=TERM_MAX)]
Revision = Annotated[int, Meta(ge=0, le=REVISION_MAX)]
CharterLength = Annotated[int, Meta(ge=0, le=CHARTER_BYTES_MAX)]


class Lead(Message, tag=70):
    """The leader of `term` lives; its charter's version, and the highest that is committed. Answered by Held."""

    term: Term
    charter_term: Term
    revision: Revision
    committed_term: Term
    committed_revision: Revision
    cluster: Name = ""


class Held(Message, tag=71):
    """To the leader: the term and the charter's version on the sender's disk."""

    term: Term
    charter_term: Term
    revision: Revision
    cluster: Name = ""


class PreVote(Message, tag=72):
    """Would you vote for me in `term`, with this version of the charter? Changes nothing; answered by PreVoted."""

    term: Term
    charter_term: Term
    revision: Revision
    cluster: Name = ""


class PreVoted(Message, tag=73):
    """asked: the term of the PreVote. error: empty for yes, or why not."""

    asked: Term
    term: Term
    error: Sentence = ""


class Vote(Message, tag=74):
    """Vote for me in `term`. Answered by Voted once the vote is on the voter's disk."""

    term: Term
    charter_term: Term
    revision: Revision
    cluster: Name = ""


class Voted(Message, tag=75):
    """asked: the term of the Vote. error: empty for yes, or why not."""

    asked: Term
    term: Term
    error: Sentence = ""


class CharterPiece(Message, tag=76):
    """`piece` of the charter of this version, from byte `start` on, of `total_bytes`. Pieces come in order."""

    charter_term: Term
    revision: Revision
    committed_term: Term
    committed_revision: Revision
    start: CharterLength
    total_bytes: CharterLength
    piece: Packed
    cluster: Name = ""


class CharterWanted(Message, tag=77):
    """Whoever holds a charter of a higher version than this sends it."""

    charter_term: Term
    revision: Revision


class Handover(Message, tag=78):
    """The leader of `term` asks the receiver to campaign at once and take its place."""

    term: Term
