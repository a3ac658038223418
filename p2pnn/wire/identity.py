"""The messages by which a node joins a secured cluster (6–8), and by which members ask the coordinator to change it (90–94).

They are part of the closed list in `wire.messages`. Those of joining are the only ones on a connection whose dialler has
shown no certificate; see `transport.joining`. The others travel on control links. No message of a member carries a
token's secret but the petition that passes on what a joiner said.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pnn.wire.fields import Count, Message, Name, Packed, Sentence, Software

TokenText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}\Z")]
SecretText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Offer(Message, tag=6):
    """Member → joiner, first: the certificate of the cluster's authority (DER), to be compared with the token."""

    authority: Packed
    software: Software = ""


class Join(Message, tag=7):
    """Joiner → member, once it knows that this is the token's cluster. key: its public one (SubjectPublicKeyInfo, DER)."""

    token: TokenText
    secret: SecretText
    key: Packed
    name: Name
    software: Software = ""


class Joined(Message, tag=8):
    """Member → joiner, once the charter that names the joiner holds: its certificate (DER). error: why it may not join."""

    certificate: Packed = b""
    error: Sentence = ""


class Petition(Message, tag=90):
    """Member → coordinator: a change of who is in, or of tokens. record: of `cluster.petitions`. Answered by Ruling."""

    request: Count
    record: Packed


class Ruling(Message, tag=91):
    """Coordinator → member. record: what was asked for. error: why not. again: it may be asked again, here or of the next one.

    bad_token: the joiner's token admits nobody, which its door counts as a guess.
    """

    request: Count
    record: Packed = b""
    error: Sentence = ""
    again: bool = False
    bad_token: bool = False


class AuthorityWanted(Message, tag=92):
    """Voter without the authority's key → members: send it to me. Answered by AuthorityKey, by who has it."""


class AuthorityKey(Message, tag=93):
    """Member → voter: the private key of the cluster's authority, PEM. Answered by AuthorityHeld, once it is on the disk."""

    key: Packed


class AuthorityHeld(Message, tag=94):
    """Voter → member: I hold the authority's key, so who is no voter any more may delete it."""
