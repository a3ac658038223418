"""The charter: the one small document that the whole cluster agrees on.

It says who is in, who votes, and what work is where. There is no log: a change makes a new charter, and the higher version
takes the lower one's place. A version is the pair (term, revision), compared in this order: `term` is that of the leader that
wrote it, `revision` counts the changes. No two charters of one version differ, because only the one leader of a term writes
charters of that term, each with a higher revision. See `p2pnn.cluster.consensus` for how they come to be.

`work` is bytes that nobody here opens. Each entry in it that data messages refer to carries a *generation*: the version of
the commit that last changed it, as one number. Whoever receives a lower one than it knows rejects it; whoever receives
a higher one fetches the committed charter. An election changes the charter's version but no generation, so it disturbs no work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from p2pnn.errors import CharterError
from p2pnn.identity.tokens import TOKENS_MAX, TokenRecord
from p2pnn.types import NodeId
from p2pnn.wire.charter import CHARTER_BYTES_MAX, REVISION_MAX, Revision, Term
from p2pnn.wire.fields import Name, NodeText

FORMAT: Final = 1
MEMBERS_MAX: Final = 1024
REMOVED_MAX: Final = 64
"""Of the members that were removed, the newest: they are told so, where a node that nobody knows is told to wait."""

SPARE_BYTES: Final = 512
"""Left free by whoever has the charter grow: more voters, and longer numbers of a term and a revision, must always fit."""

VOTERS_MAX: Final = 7
"""Five, and one more or fewer while they change; a quorum of more would only be slower."""


class Version(NamedTuple):
    """Which charter. Compares as a pair does."""

    term: int
    revision: int

    @property
    def generation(self) -> int:
        """The version as one number of 63 bits that compares in the same way: what data messages carry."""
        return self.term * (REVISION_MAX + 1) + self.revision

    @classmethod
    def of(cls, generation: int) -> Version:
        """The version of which this is the generation."""
        return cls(*divmod(generation, REVISION_MAX + 1))

    def __str__(self) -> str:
        return f"{self.term}.{self.revision}"


NOTHING: Final = Version(0, 0)
"""The version of a node that holds no charter; every charter is higher."""


class CharterMember(msgspec.Struct, frozen=True, array_like=True):
    """A node that was admitted. fingerprint: SHA-256 of its key, as hexadecimal digits; empty in a plain mesh."""

    node: NodeText
    fingerprint: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    name: Name


class Charter(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The document. cluster: a random id, minted when it was founded. voters: some of the members, in no special order.
    tokens: by which nodes join a secured cluster. removed: who was a member, the oldest first; whoever joins again leaves
    this list.

    New fields come at the end, with a default; a change that an older p2pnn must not ignore raises FORMAT.
    """

    format: int
    cluster: Name
    term: Term
    revision: Revision
    voters: Annotated[tuple[NodeText, ...], Meta(min_length=1, max_length=VOTERS_MAX)]
    members: Annotated[tuple[CharterMember, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    work: Annotated[bytes, Meta(max_length=CHARTER_BYTES_MAX)] = b""
    tokens: Annotated[tuple[TokenRecord, ...], Meta(max_length=TOKENS_MAX)] = ()
    removed: Annotated[tuple[NodeText, ...], Meta(max_length=REMOVED_MAX)] = ()

    @cached_property
    def version(self) -> Version:
        return Version(self.term, self.revision)

    @cached_property
    def majority(self) -> int:
        """How many voters make a quorum."""
        return len(self.voters) // 2 + 1

    def has_quorum(self, nodes: set[NodeId]) -> bool:
        """Whether a majority of the voters is among these nodes."""
        return len(self._voters & nodes) >= self.majority

    def member(self, node: str) -> CharterMember | None:
        """The member with this id."""
        return next((member for member in self.members if member.node == node), None)

    def nodes(self) -> Sequence[NodeId]:
        """The members' ids, in the order in which they were admitted. Always the same list: do not change it."""
        return self._nodes

    @cached_property
    def _nodes(self) -> list[NodeId]:
        return [NodeId(member.node) for member in self.members]

    @cached_property
    def _voters(self) -> frozenset[str]:
        return frozenset(self.voters)

    def successor(
        self,
        *,
        voters: Sequence[NodeId] | None = None,
        members: Sequence[CharterMember] | None = None,
        work: bytes | None = None,
        tokens: Sequence[TokenRecord] | None = None,
        removed: Sequence[NodeId] | None = None,
    ) -> Charter:
        """The next revision of this term, with what is given changed."""
        return msgspec.structs.replace(
            self,
            revision=self.revision + 1,
            voters=self.voters if voters is None else tuple(voters),
            members=self.members if members is None else tuple(members),
            work=self.work if work is None else work,
            tokens=self.tokens if tokens is None else tuple(tokens),
            removed=self.removed if removed is None else tuple(removed),
        )

    def rewritten(self, term: int) -> Charter:
        """The same document as the leader of a new term writes it."""
        return msgspec.structs.replace(self, term=term)


def found(cluster: str, founder: CharterMember, tokens: Sequence[TokenRecord] = ()) -> Charter:
    """The first charter of a cluster: one member, who is its one voter."""
    return Charter(FORMAT, cluster, 0, 1, (founder.node,), (founder,), tokens=tuple(tokens))


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Charter)


def encode(charter: Charter, before: Charter | None = None) -> bytes:
    """The charter as bytes, for links and for the disk. before: of a change that is proposed, what it changes.

    Raises CharterError over CHARTER_BYTES_MAX, or over a field's limit; SPARE_BYTES earlier where it has grown since `before`.
    """
    data = _ENCODER.encode(charter)
    limit = CHARTER_BYTES_MAX
    if before is not None and len(data) > len(_ENCODER.encode(before)):
        limit -= SPARE_BYTES
    if len(data) > limit:
        raise CharterError(
            f"the charter would take {len(data)} bytes, over the limit of {limit}; "
            f"{len(charter.work)} of them are the jobs' state, {len(charter.members)} members are in it"
        )
    decode(data)
    return data


def decode(data: bytes | bytearray) -> Charter:
    """The charter in these bytes. Raises CharterError where they are none, or come from a newer p2pnn."""
    if len(data) > CHARTER_BYTES_MAX:
        raise CharterError(f"a charter of {len(data)} bytes is over the limit of {CHARTER_BYTES_MAX}")
    try:
        charter = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        newer = _newer_format(data)
        if newer:
            raise CharterError(
                f"the charter has format {newer}, this p2pnn reads up to {FORMAT}; use a newer p2pnn"
            ) from None
        raise CharterError(f"{len(data)} bytes are no charter: {error}") from None
    if charter.format > FORMAT:
        raise CharterError(
            f"the charter has format {charter.format}, this p2pnn reads up to {FORMAT}; use a newer p2pnn"
        )
    _check(charter)
    return charter


def _check(charter: Charter) -> None:
    nodes = charter.nodes()
    if len(set(nodes)) != len(nodes):
        raise CharterError("a charter that names a member twice")
    if len(set(charter.voters)) != len(charter.voters) or not set(charter.voters) <= set(nodes):
        raise CharterError("a charter whose voters are not different members of it")


def _newer_format(data: bytes | bytearray) -> int:
    """The format of a charter whose fields this program does not understand; 0 where that is not why."""
    try:
        first = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        return 0
    found_format = first[0] if isinstance(first, list) and first and isinstance(first[0], int) else 0
    return found_format if found_format > FORMAT else 0
