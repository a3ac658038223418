"""What passes between the transport and its owner: who we are, who the peer is, what happened.

The transport calls an `Events` object, always from the loop, never from inside the owner's own call to `send`, `dial` or
`forget`, and not any more once `close` was called. The calls are synchronous: what may wait belongs in a task of the
owner. Raising RemoteProtocolError from `message`, `body_for` or `body` closes the link with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import VERSION_MAX, VERSION_MIN, Hello, LinkKind, Message, Welcome


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """What this node says of itself in Hello and Welcome. boot: a random text per daemon start."""

    node: NodeId
    name: str
    cluster: str
    boot: str
    software: str = ""

    def hello(self, kind: LinkKind, session: str, port: int) -> Hello:
        return Hello(
            version_min=VERSION_MIN,
            version_max=VERSION_MAX,
            link=kind,
            node=self.node,
            name=self.name,
            cluster=self.cluster,
            port=port,
            boot=self.boot,
            session=session,
            software=self.software,
        )

    def welcome(self, version: int, session: str) -> Welcome:
        return Welcome(version, self.node, self.name, self.boot, session, self.software)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """The peer of a new control link.

    address: where the peer listens, by IP address: where we reached it, or its host as we see it with the port it named.
    boot: another one than last time means that the peer was restarted and remembers nothing.
    """

    node: NodeId
    name: str
    address: Address
    boot: str
    software: str = ""


class Events(Protocol):
    """What the owner of a transport must answer to."""

    def peer_connected(self, node: NodeId, hello: PeerIdentity) -> None:
        """A control link to `node` is open; once until peer_lost."""

    def peer_lost(self, node: NodeId, reason: str, left: bool) -> None:
        """The control link is gone, and the data link with it; once for each peer_connected.

        left: the peer said goodbye (Close with LEAVING); otherwise it failed, for `reason`.
        """

    def message(self, node: NodeId, message: Message) -> None:
        """A message without a body arrived on the control link."""

    def body_for(self, node: NodeId, message: Message, nbytes: int) -> memoryview | None:
        """Where the body of `message` shall be received: a writable memoryview of `nbytes` bytes.

        None drops the body: it is read and thrown away. The memory belongs to the link until `body` or peer_lost,
        whichever comes first: a data link that breaks takes the control link with it, so that no body is lost unnoticed.
        """

    def body(self, node: NodeId, message: Message) -> None:
        """The whole body lies in the memory that body_for gave. Not called for dropped bodies."""

    def dial_reached(self, address: Address, node: NodeId) -> None:
        """The node that answered at a dialled address, each time that becomes known; before peer_connected, if that follows."""

    def dial_failed(self, address: Address, reason: str, refused: bool) -> None:
        """One attempt to reach `address` failed; the next follows after a growing delay until `forget`.

        refused: the machine answers, and nothing listens there.
        """


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """One link, for a person to look at."""

    node: NodeId
    name: str
    kind: LinkKind
    address: Address
    dialled: bool
    round_trip_s: float | None
    queued: int
    received_bytes: int
    sent_bytes: int
