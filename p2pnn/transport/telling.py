"""What a link tells its owner, and the log when it ends."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from p2pnn.wire.events import Closed, HelloReceived, Opened
from p2pnn.wire.messages import CloseReason, Message

if TYPE_CHECKING:
    from p2pnn.transport.link import Link
    from p2pnn.transport.secure import SecureStream
    from p2pnn.transport.strangers import Strangers

log = logging.getLogger("p2pnn.transport")


class Owner(Protocol):
    """What a link tells; all calls are synchronous."""

    def link_made(self, link: Link) -> None: ...
    def link_secured(self, link: Link, stream: SecureStream) -> None: ...
    def link_hello(self, link: Link, event: HelloReceived) -> None: ...
    def link_opened(self, link: Link, event: Opened) -> None: ...
    def link_message(self, link: Link, message: Message) -> None: ...
    def link_body_for(self, link: Link, message: Message, nbytes: int) -> memoryview | None: ...
    def link_body(self, link: Link, message: Message) -> None: ...
    def link_closed(self, link: Link, event: Closed) -> None: ...
    def link_lost(self, link: Link) -> None: ...


def log_closed(link: Link, event: Closed, strangers: Strangers) -> None:
    """One line per link that ends; a warning where somebody erred, and not for each of very many strangers."""
    if link.dialled and not link.node and not link.proved:
        level = logging.DEBUG  # a dial that failed; told once by whoever dialled
    else:
        erred = event.reason >= CloseReason.MALFORMED and event.reason != CloseReason.SELF
        level = logging.WARNING if erred else logging.DEBUG
        if erred and not link.node and not link.proved and not strangers.may_warn(monotonic()):
            level = logging.DEBUG
    kind = link.kind.name.lower() if link.kind is not None else "unknown"
    by = "peer" if event.by_peer else "us"
    log.log(
        level,
        "link closed remote=%s node=%s name=%s kind=%s by=%s reason=%d text=%s",
        link.remote,
        (link.node or link.proved)[:8],
        link.name,
        kind,
        by,
        event.reason,
        event.text,
    )
