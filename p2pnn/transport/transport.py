"""The links of one node: listening, dialling, and one control link and at most one data link per peer.

A peer exists as long as its control link. The data link is opened when the first body is to be sent, by whichever side needs
it first, and names the control link's session; if it breaks, the control link is closed as well, so that whoever waits
for a body learns of its loss by one event. `admission` decides about incoming links; here decisions are carried out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from dataclasses import replace
from functools import partial
from random import Random
from time import monotonic
from typing import TYPE_CHECKING

from p2pnn.errors import LocalProtocolError, PeerGone, QueueFullError
from p2pnn.transport.admission import Accept, Introduce, Linked, Refuse, admit, outranks
from p2pnn.transport.attempt import Attempt, furthest
from p2pnn.transport.dial import Dialled, dial_data, towards
from p2pnn.transport.events import Events, LinkSnapshot, LocalIdentity, PeerIdentity
from p2pnn.transport.limits import Limits
from p2pnn.transport.link import Link
from p2pnn.transport.listener import Listener
from p2pnn.transport.peer import Leaving, Peer
from p2pnn.transport.sockets import bind_error, bindable, listening
from p2pnn.transport.strangers import Strangers
from p2pnn.transport.telling import log_closed
from p2pnn.types import Address, NodeId
from p2pnn.wire.events import Closed, HelloReceived, Opened
from p2pnn.wire.messages import CloseReason, Hello, LinkKind, Message, Welcome

if TYPE_CHECKING:
    from p2pnn.transport.secure import SecureStream, Security

log = logging.getLogger("p2pnn.transport")


class Transport:
    """Create it, then `start`; end with `close`. All calls from one event loop.

    security: keys and certificates, so that links use TLS; None for a plain mesh, which stays on this machine.
    """

    def __init__(
        self,
        identity: LocalIdentity,
        events: Events,
        limits: Limits | None = None,
        security: Security | None = None,
    ) -> None:
        self._identity = identity
        self._security = security
        self._events = events
        self._limits = limits or Limits()
        self._random = Random()
        self._strangers = Strangers(self._limits)
        self._listener: Listener | None = None
        self._listen_port = 0
        self._links: set[Link] = set()
        self._peers: dict[NodeId, Peer] = {}
        self._dialled: dict[Address, Dialled] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = ""

    # --- public

    async def start(self, listen: Address) -> Address:
        """Listen; returns the address with the port that the system chose if it was 0.

        Raises NotAllowedError for one that other machines reach in a plain mesh, UsageError for one that cannot be had.
        """
        endpoint = await bindable(listen, secured=self._security is not None)
        try:
            self._listener = Listener(listening(endpoint), self._accept)
        except OSError as error:
            raise bind_error(listen, error) from None
        self._listen_port = self._listener.port
        return Address(listen.host, self._listen_port)

    def dial(self, address: Address) -> None:
        """Keep a control link to this address, with growing delays between attempts, until `forget`."""
        if self._closing or address in self._dialled:
            return
        dialled = self._dialled[address] = Dialled(
            address, self, self._limits, self._random, secured=self._security is not None
        )
        self._own(dialled.task)

    def forget(self, address: Address) -> None:
        """Dial this address no more. A link that is open stays."""
        dialled = self._dialled.pop(address, None)
        if dialled is not None:
            dialled.task.cancel()

    def adopt(self, security: Security, cluster: str, moves: bool) -> None:
        """Use other credentials from now on. moves: this node joins a cluster, if need be that of before, so no link stays."""
        self._identity = replace(self._identity, cluster=cluster)
        self._security = security
        if moves:
            for link in list(self._links):
                link.close(CloseReason.LEAVING, "this node has joined another cluster")

    def expel(self, node: NodeId, text: str) -> None:
        """Close all links to a node that the cluster has removed; its door refuses new ones."""
        for link in sorted(self._links, key=lambda link: link.kind is LinkKind.DATA):  # the control link tells why
            if node in (link.node, link.proved):
                link.close(CloseReason.REMOVED, text)

    def connected(self, node: NodeId) -> bool:
        """Whether a control link to `node` is open."""
        return node in self._peers

    def send(self, node: NodeId, message: Message) -> None:
        """Queue a message without a body on the control link; they arrive in order.

        Raises PeerGone without a link, or when the peer has not read for so long that the queue is full (it is then closed
        with OVERFLOW); LocalProtocolError for a message over a limit of the wire.
        """
        peer = self._peer(node)
        try:
            peer.control.send(message)
        except QueueFullError as error:
            asyncio.get_running_loop().call_soon(peer.control.close, CloseReason.OVERFLOW, str(error))
            raise PeerGone(f"node {peer.identity.name!r} does not read: {error}") from None
        except LocalProtocolError:
            if peer.control.is_open:
                raise
            raise PeerGone(f"the link to node {peer.identity.name!r} is being closed") from None

    async def send_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> None:
        """Send a message with its body (contiguous memory) on the data link; smaller priorities first.

        Returns when the operating system holds the last byte: `body` may then be overwritten, before not. When cancelled,
        a body that has begun may still be finished, while its bytes move, before CancelledError is raised; if it cannot, both
        links to the peer are given up. Raises PeerGone when they break before; LocalProtocolError over a limit.
        """
        rest = self._peer(node).start_body(message, body, priority)
        if rest is not None:
            await rest

    def start_body(self, node: NodeId, message: Message, body: memoryview, priority: int = 0) -> Leaving | None:
        """The same for who sends many: None where the body has left at once, which is the rule; else await or recall it."""
        return self._peer(node).start_body(message, body, priority)

    def snapshot(self) -> tuple[LinkSnapshot, ...]:
        """All links of peers, by name."""
        peers = sorted(self._peers.values(), key=lambda peer: (peer.identity.name, peer.node))
        return tuple(link for peer in peers for link in peer.snapshot())

    async def close(self, reason: str) -> None:
        """Say goodbye to all peers (LEAVING), close all links. No event comes after this call has begun."""
        self._closing = reason or "this node is stopping"
        if self._listener is not None:
            self._listener.close()
        for address in list(self._dialled):
            self.forget(address)
        for link in list(self._links):
            link.close(CloseReason.LEAVING, self._closing)
        for peer in list(self._peers.values()):
            self._drop(peer, self._closing, left=False)
        waits = [link.lost for link in self._links]
        if waits:
            await asyncio.wait(waits, timeout=self._limits.goodbye_s * 2)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- links: what they tell (link.Owner)

    def link_made(self, link: Link) -> None:
        self._links.add(link)
        strangers = sum(not other.dialled and other.kind is None for other in self._links)
        if self._security is None and strangers > self._limits.handshakes_max:  # else it was refused before
            link.close(CloseReason.TOO_MANY, "too many connections that have not said Hello")
        elif self._closing:
            link.close(CloseReason.LEAVING, self._closing)

    def link_secured(self, link: Link, stream: SecureStream) -> None:
        """TLS has proved the peer's key, or that it has none: then it is a guest."""
        security, link.key = self._security, stream.peer
        if link.connection.is_closed:
            return  # too late, or refused: its Close is on its way
        if security is None or self._closing:
            link.close(CloseReason.LEAVING, self._closing)
        elif link.key is None:
            link.release()
            security.door.guest(stream, link.remote.host)
        else:
            link.proved, link.name = link.key.node, security.door.name_of(link.key)
            refused = security.door.admits(link.key)
            if refused is not None:
                link.close(refused.reason, refused.text)

    def link_hello(self, link: Link, event: HelloReceived) -> None:
        hello = event.hello
        node = NodeId(hello.node)
        if (refused := self._check(link, node)) is not None:
            link.connection.refuse(refused.reason, refused.text)
            return
        peer = self._peers.get(node)
        attempts = self._attempts_towards(link, hello, peer)
        linked = Linked(peer.identity.boot, peer.session, peer.data is not None) if peer is not None else None
        answer = admit(self._identity, hello, linked, furthest(attempts), len(self._links) > self._limits.links_max)
        link.node = node
        match answer:
            case Refuse(reason, text):
                link.connection.refuse(reason, text)
            case Introduce():
                link.connection.accept(self._identity.welcome(event.version, ""))
                link.connection.close(CloseReason.REPLACED, "another link between these nodes is open")
            case Accept(restarted):
                if restarted and peer is not None:
                    self._drop(peer, "it was restarted", left=False)
                    peer.control.close(CloseReason.REPLACED, "the peer was restarted")
                for attempt in attempts:
                    attempt.abandon("the peer dialled as well; its link stays")
                control = hello.link is LinkKind.CONTROL
                link.session = secrets.token_hex(16) if control else hello.session
                link.connection.accept(self._identity.welcome(event.version, link.session))

    def link_opened(self, link: Link, event: Opened) -> None:
        greeting = event.greeting
        if (refused := self._check(link, NodeId(greeting.node))) is not None:
            link.close(refused.reason, refused.text)
            return
        link.node, link.name = NodeId(greeting.node), greeting.name
        if link.dialled and isinstance(greeting, Welcome):
            if link.kind is LinkKind.CONTROL:
                link.session = greeting.session
            self._reached(link, NodeId(greeting.node))
        if not link.session or not link.is_open:
            return  # an introduction; Close follows
        if link.kind is LinkKind.DATA:
            self._data_opened(link)
        else:
            self._control_opened(link, greeting)

    def link_message(self, link: Link, message: Message) -> None:
        peer = self._peers.get(link.node)
        if link.kind is LinkKind.DATA:
            link.close(CloseReason.UNEXPECTED, f"{type(message).__name__} belongs on the control link")
        elif peer is not None and peer.control is link and not self._closing:
            self._events.message(peer.node, message)

    def link_body_for(self, link: Link, message: Message, nbytes: int) -> memoryview | None:
        peer = self._peers.get(link.node)
        if peer is None or peer.data is not link or self._closing:
            return None
        return self._events.body_for(peer.node, message, nbytes)

    def link_body(self, link: Link, message: Message) -> None:
        peer = self._peers.get(link.node)
        if peer is not None and peer.data is link and not self._closing:
            self._events.body(peer.node, message)

    def link_closed(self, link: Link, event: Closed) -> None:
        log_closed(link, event, self._strangers)
        told_removed = event.by_peer and event.reason == CloseReason.REMOVED
        if told_removed and self._security is not None and link.key is not None:
            self._security.door.told_removed(event.text)
        peer = self._peers.get(link.node)
        if peer is None or self._closing:
            return
        if link is peer.control:
            left = event.by_peer and event.reason == CloseReason.LEAVING
            removed = not event.by_peer and event.reason == CloseReason.REMOVED
            self._drop(peer, event.text or "the link was closed", left or removed)
        elif link is peer.data:
            peer.data = None
            if event.reason != CloseReason.LEAVING:  # after a goodbye the control link's own follows
                peer.control.close(CloseReason.FAILED, f"the data link broke: {event.text}")

    def link_lost(self, link: Link) -> None:
        self._links.discard(link)

    # --- opening

    def _accept(self, sock: socket.socket) -> None:
        if self._security is not None and self._strangers.refuses(sock, self._links, monotonic()):
            sock.close()
            return
        Link(self, None, self._limits, self._security).attach(sock)

    def _control_opened(self, link: Link, greeting: Hello | Welcome) -> None:
        node = NodeId(greeting.node)
        if node == self._identity.node:
            link.close(CloseReason.SELF, "a node dialled itself")
            return
        existing = self._peers.get(node)
        if existing is not None:
            if existing.identity.boot == greeting.boot and not outranks(
                link.dialled, existing.control.dialled, self._identity.node < node
            ):
                link.close(CloseReason.REPLACED, "another link between these nodes is open")
                return
            restarted = existing.identity.boot != greeting.boot
            existing.control.close(CloseReason.REPLACED, "a newer link between these nodes stays")
            self._drop(
                existing, "it was restarted" if restarted else "its link was replaced by a newer one", left=False
            )
        port = link.remote.port if link.dialled or isinstance(greeting, Welcome) else greeting.port
        address = Address(link.remote.host, port)
        identity = PeerIdentity(node, greeting.name, address, greeting.boot, greeting.software)
        peer = self._peers[node] = Peer(identity, link, link.session, self._limits, self._start_data)
        log.info(
            "peer connected node=%s name=%s address=%s dialled=%s", node[:8], peer.identity.name, address, link.dialled
        )
        for dialled in list(self._dialled.values()):
            dialled.settled()
        if not self._closing:
            self._events.peer_connected(node, identity)

    def _data_opened(self, link: Link) -> None:
        peer = self._peers.get(link.node)
        if peer is None or peer.data is not None or peer.session != link.session:
            link.close(CloseReason.REPLACED, "another data link between these nodes is open")
            return
        peer.data_opened(link)

    def _drop(self, peer: Peer, reason: str, left: bool) -> None:
        """The peer's control link is gone, or as good as."""
        if self._peers.get(peer.node) is not peer:
            return
        del self._peers[peer.node]
        peer.end(f"node {peer.identity.name!r} is gone: {reason}", reset=not self._closing)
        for dialled in self._dialled.values():
            dialled.wake.set()
        if not self._closing:
            self._events.peer_lost(peer.node, reason, left)

    # --- dialling (dial.Owner)

    def open_control(self) -> Link:
        return Link(self, self._identity.hello(LinkKind.CONTROL, "", self._listen_port), self._limits, self._security)

    def tenant(self, address: Address, node: NodeId | None) -> NodeId | None:
        """The linked peer behind an address; node: who answered there last."""
        if node in self._peers:
            return node
        return next((peer.node for peer in self._peers.values() if peer.identity.address == address), None)

    def dial_reached(self, address: Address, node: NodeId) -> None:
        if not self._closing:
            self._events.dial_reached(address, node)

    def dial_failed(self, address: Address, trouble: str, refused: bool) -> None:
        if not self._closing:
            self._events.dial_failed(address, trouble, refused)

    def _reached(self, link: Link, node: NodeId) -> None:
        for dialled in list(self._dialled.values()):
            if dialled.attempt is not None and dialled.attempt.link is link:
                dialled.reached(node)

    def _start_data(self, peer: Peer) -> asyncio.Task[None]:
        open_link, secured = partial(self._data_link, peer.session), self._security is not None
        task = asyncio.ensure_future(dial_data(peer, open_link, self._limits, self._random, secured))
        self._own(task)
        return task

    def _data_link(self, session: str) -> Link:
        hello = self._identity.hello(LinkKind.DATA, session, self._listen_port)
        link = Link(self, hello, self._limits, self._security)
        link.session = session
        return link

    def _attempts_towards(self, link: Link, hello: Hello, peer: Peer | None) -> list[Attempt]:
        """Our own attempts to open the same kind of link to the node that said this Hello, as far as addresses tell."""
        if hello.link is LinkKind.DATA:
            return [peer.data_attempt] if peer is not None and peer.data_attempt is not None else []
        return towards(Address(link.remote.host, hello.port), hello.node, self._dialled.values())

    # --- small things

    def _check(self, link: Link, node: NodeId) -> Refuse | None:
        return None if self._security is None else self._security.check(node, link.key)

    def _peer(self, node: NodeId) -> Peer:
        peer = self._peers.get(node)
        if peer is None:
            raise PeerGone(f"no link leads to node {node[:8]}")
        return peer

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the transport failed", exc_info=task.exception())
