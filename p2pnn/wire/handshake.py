"""What two nodes agree on before a link is open: the highest protocol version that both speak."""

from __future__ import annotations

from p2pnn.errors import RemoteProtocolError
from p2pnn.wire.messages import CloseReason, Hello, LinkKind, Welcome

Versions = tuple[int, int]
"""The lowest and the highest that a side speaks."""


def choose_version(versions: Versions, hello: Hello) -> int:
    """The listener's choice. Raises RemoteProtocolError for a Hello that contradicts itself, or where there is none."""
    low, high = versions
    if hello.version_min > hello.version_max:
        raise RemoteProtocolError(
            CloseReason.MALFORMED, f"Hello offers versions {hello.version_min} to {hello.version_max}"
        )
    version = min(high, hello.version_max)
    if version < max(low, hello.version_min):
        raise RemoteProtocolError(
            CloseReason.VERSION,
            f"no common protocol version: this node speaks {low} to {high}, the peer {hello.version_min} to "
            f"{hello.version_max}; upgrade the older one",
        )
    if hello.link is LinkKind.DATA and not hello.session:
        raise RemoteProtocolError(CloseReason.NO_SESSION, "a data link must name the session of a control link")
    return version


def check_choice(versions: Versions, welcome: Welcome) -> None:
    """The dialler's side: raises RemoteProtocolError for a version that was not offered."""
    low, high = versions
    if not low <= welcome.version <= high:
        raise RemoteProtocolError(
            CloseReason.VERSION,
            f"the peer chose version {welcome.version}; this node offered {low} to {high}",
        )
