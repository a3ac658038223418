"""What a member may ask of the coordinator about who is in, and how the coordinator decides.

`rule` looks at the charter and says what must be proposed and answered, or why not; `node.petitions` carries that out. A
petition that needs no proposal, because it holds already, is answered at once: who asks twice, for lack of an answer,
gets one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.identity import tokens
from p2pnn.identity.tokens import TOKENS_MAX, TokenRecord
from p2pnn.types import NodeId, is_node_name
from p2pnn.wire.fields import Host, Name
from p2pnn.wire.identity import SecretText, TokenText

Key = Annotated[bytes, Meta(max_length=256)]


class Admit(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A joiner's words, and the address that it came from. Granted with its certificate."""

    token: TokenText
    secret: SecretText
    key: Key
    name: Name
    host: Host


class Renew(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A member's own certificate ends. key: its public one. Granted with the next certificate."""

    key: Key


class MakeToken(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A token that the asker has made; its secret stays there."""

    record: TokenRecord


class RevokeToken(msgspec.Struct, frozen=True, array_like=True, tag=4):
    id: TokenText


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """member: its name, or its node id or the beginning of that."""

    member: Name


Petition = Admit | Renew | MakeToken | RevokeToken | Remove

_DECODER = msgspec.msgpack.Decoder(Petition)


def encode(petition: Petition) -> bytes:
    return msgspec.msgpack.encode(petition)


def decode(data: bytes) -> Petition:
    """Raises NotAllowedError for bytes that are none."""
    try:
        found: Petition = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise NotAllowedError(
            f"the petition cannot be read ({error}); nodes of one cluster need one version of p2pnn"
        ) from None
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """What to propose. certify: for which public key a certificate is the answer. holds: nothing need be proposed."""

    admit: tuple[CharterMember, ...] = ()
    dismiss: tuple[NodeId, ...] = ()
    tokens: tuple[TokenRecord, ...] | None = None
    certify: bytes = b""
    hand_over: bool = False

    @property
    def holds(self) -> bool:
        return not (self.admit or self.dismiss or self.tokens is not None or self.hand_over)


def rule(charter: Charter, me: NodeId, source: NodeId, petition: Petition, fingerprint: str, now: float) -> Change:
    """What the coordinator `me` makes of it. fingerprint: of the petition's key, where it has one. now: seconds since 1970.

    Raises NotAllowedError or UsageError: why not. A token has been judged before (`tokens.judge`).
    """
    match petition:
        case Admit():
            return _admit(charter, petition, fingerprint)
        case Renew():
            member = charter.member(source)
            if member is None or member.fingerprint != fingerprint:
                raise NotAllowedError("a certificate is renewed for a member's own key only")
            return Change(certify=petition.key)
        case MakeToken(record):
            return _make(charter, record, now)
        case RevokeToken(id):
            living = tokens.living(charter.tokens, now)
            found = tokens.revoked(living, id)
            return Change(tokens=found) if found != charter.tokens else Change()
        case Remove(text):
            member = named(charter.members, text)
            if member.node == me:
                if len(charter.members) == 1:
                    raise UsageError(
                        f"{member.name} is the only member; it leaves by joining another cluster (p2pnn join)"
                    )
                return Change(hand_over=True)
            # Whoever is removed may know the tokens of today, and would come back by one.
            living = tokens.living(charter.tokens, now)
            return Change(dismiss=(NodeId(member.node),), tokens=tokens.all_revoked(living) or None)


def named(members: Sequence[CharterMember], text: str) -> CharterMember:
    """The one member of this id, name or beginning of an id, in this order. Raises UsageError for none, or several."""
    found = [member for member in members if member.node == text]
    found = found or [member for member in members if member.name == text]
    found = found or [member for member in members if len(text) >= 4 and member.node.startswith(text)]
    if not found:
        raise UsageError(f"no member is called {text!r}; `p2pnn cluster show` lists them")
    if len(found) > 1:
        nodes = ", ".join(member.node[:8] for member in found)
        raise UsageError(f"{len(found)} members are called {text!r}; name one by its node id: {nodes}")
    return found[0]


def _admit(charter: Charter, petition: Admit, fingerprint: str) -> Change:
    node = fingerprint[:32]
    present = charter.member(node)
    if present is not None and present.fingerprint != fingerprint:
        raise NotAllowedError("another member has this node id")
    if present is not None:
        return Change(certify=petition.key)
    if not is_node_name(petition.name):
        raise NotAllowedError(f"{petition.name!r} cannot be a node's name; start that node with another --name")
    return Change(admit=(CharterMember(node, fingerprint, petition.name),), certify=petition.key)


def _make(charter: Charter, record: TokenRecord, now: float) -> Change:
    living = tokens.living(charter.tokens, now)
    if record in living:
        return Change()
    if any(one.id == record.id for one in living):
        raise UsageError("a token of this id exists; ask again")
    if len(living) >= TOKENS_MAX:
        raise UsageError(f"there are {TOKENS_MAX} tokens that have not expired, and no room for more until one does")
    if not 0 < record.expires_s - now <= tokens.VALID_S_MAX + 3600:
        raise UsageError(
            "the token expires in the past, or too late; compare the clocks of this machine and the coordinator's"
        )
    return Change(tokens=(*living, record))
