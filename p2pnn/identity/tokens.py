"""Join tokens: `p2pnn1.<sha256 of the authority's certificate>.<id>.<secret>`, all of it lower-case hexadecimal digits.

The first part tells the joiner which cluster it must be talking to before it sends the last one. The cluster keeps of a
token its id, who made it, until when it holds, and the SHA-256 of the secret: the secret has 128 random bits, so a plain
hash is as good as a slow one, and nobody who reads the charter can use it. A token may be used several times until it
expires: it admits members.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pnn.errors import UsageError

VALID_S: Final = 24 * 3600
VALID_S_MAX: Final = 30 * 24 * 3600
"""A token that never ends is a password."""

TOKENS_MAX: Final = 64
"""In a charter at once; 130 bytes each."""

_TOKEN: Final = re.compile(r"p2pnn1\.([0-9a-f]{64})\.([0-9a-f]{8})\.([0-9a-f]{32})")
_NOBODY: Final = hashlib.sha256(b"no such token").digest()


class TokenRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the charter keeps. by: the name of the node that made it. Times are seconds since 1970."""

    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}\Z")]
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    by: Annotated[str, Meta(max_length=64)]
    created_s: Annotated[int, Meta(ge=0)]
    expires_s: Annotated[int, Meta(ge=0)]
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """What a person passes on. cluster: SHA-256 of the authority's certificate."""

    cluster: str
    id: str
    secret: str

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises UsageError, without repeating what may be a secret."""
        found = _TOKEN.fullmatch(text.strip())
        if found is None:
            raise UsageError(
                f"bad token: {len(text.strip())} characters that are no join token; it begins with p2pnn1. and has"
                " 113 characters, as `p2pnn token create` prints it"
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"p2pnn1.{self.cluster}.{self.id}.{self.secret}"

    def __repr__(self) -> str:
        return f"Token({self.id})"


def create(
    cluster: str, by: str, now: float, valid_s: float, random: Callable[[int], bytes]
) -> tuple[Token, TokenRecord]:
    """A new token and what is kept of it. random: as os.urandom. Raises UsageError for a time that is not sensible."""
    if not 60 <= valid_s <= VALID_S_MAX:
        raise UsageError(f"a token is valid for a minute to {VALID_S_MAX // 86400} days, not for {valid_s:g} s")
    token = Token(cluster, random(4).hex(), random(16).hex())
    return token, TokenRecord(token.id, _digest(token.secret), by, int(now), int(now + valid_s))


def judge(records: Sequence[TokenRecord], id: str, secret: str, now: float) -> str:
    """Why this token admits nobody; empty where it does. The time that it takes tells nothing about the secret.

    Only who has the secret is told that the token has expired or was revoked.
    """
    record = next((one for one in records if one.id == id), None)
    digest = _NOBODY if record is None else record.digest
    matches = hmac.compare_digest(digest, _digest(secret))
    if record is None or not matches:
        return "bad token: the cluster knows no such token; ask for a new one (`p2pnn token create`)"
    if record.revoked:
        return "bad token: it was revoked; ask for a new one (`p2pnn token create`)"
    if now >= record.expires_s:
        return "bad token: it has expired; ask for a new one (`p2pnn token create`)"
    return ""


def living(records: Sequence[TokenRecord], now: float) -> tuple[TokenRecord, ...]:
    """Without those that have expired: nobody asks for them any more."""
    return tuple(record for record in records if now < record.expires_s)


def revoked(records: Sequence[TokenRecord], id: str) -> tuple[TokenRecord, ...]:
    """The same with this one revoked. Raises UsageError where there is none."""
    if all(record.id != id for record in records):
        raise UsageError(f"there is no token {id}; `p2pnn token list` shows them")
    return tuple(msgspec.structs.replace(record, revoked=True) if record.id == id else record for record in records)


def all_revoked(records: Sequence[TokenRecord]) -> tuple[TokenRecord, ...]:
    return tuple(msgspec.structs.replace(record, revoked=True) for record in records)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
