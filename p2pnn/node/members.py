"""The adapter of `cluster.Membership`: feed it what links tell, carry out what it wants, re-arm its timer."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from p2pnn.cluster import (
    Dial,
    Forget,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    Membership,
    MemberSnapshot,
    NameTaken,
)
from p2pnn.node.links import Post
from p2pnn.transport import PeerIdentity, Transport
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Message

log = logging.getLogger("p2pnn.members")


class Members:
    """on_joined(node, name) and on_failed(node, reason) are called for every change; a leaving node counts as failed."""

    def __init__(
        self,
        post: Post,
        joins: Sequence[Address],
        transport: Transport,
        on_joined: Callable[[NodeId, str], None],
        on_failed: Callable[[NodeId, str], None],
    ) -> None:
        self._post = post
        self._transport = transport
        self._on_joined = on_joined
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._core = Membership(post.node, post.name, joins, self._loop.time(), random.Random())
        self._timer: asyncio.TimerHandle | None = None
        self._names: dict[NodeId, str] = {}
        self._untold = dict.fromkeys(joins, "")

    def start(self) -> None:
        self._settle()

    def names(self) -> dict[NodeId, str]:
        """Name by id of every living member, this node first."""
        return {self._post.node: self._post.name, **self._names}

    def snapshot(self) -> tuple[MemberSnapshot, ...]:
        return self._core.snapshot(self._loop.time())

    def link_up(self, node: NodeId, peer: PeerIdentity) -> None:
        self._core.link_up(node, peer.name, peer.address.host, peer.address.port, peer.boot, self._loop.time())
        self._settle()

    def link_down(self, node: NodeId, reason: str, left: bool) -> None:
        self._core.link_down(node, reason, left, self._loop.time())
        self._settle()

    def dial_reached(self, address: Address, node: NodeId) -> None:
        self._core.dial_reached(address, node, self._loop.time())
        self._settle()

    def dial_failed(self, address: Address, reason: str) -> None:
        if self._untold.get(address, reason) != reason:  # whoever configured this peer should know, once
            self._untold[address] = reason
            log.warning(
                "cannot join address=%s reason=%s; it is tried again: see that a node listens there (its --listen)"
                " and belongs to the same --cluster",
                address,
                reason,
            )
        self._core.dial_failed(address, reason, self._loop.time())
        self._settle()

    def receive(self, node: NodeId, message: Message) -> None:
        self._core.receive(node, message, self._loop.time())
        self._settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self) -> None:
        while (event := self._core.next_event()) is not None:
            match event:
                case Dial(address):
                    self._transport.dial(address)
                case Forget(address):
                    self._transport.forget(address)
                case MemberJoined(member):
                    self._names[NodeId(member.node)] = member.name
                    log.info(
                        "member joined node=%s name=%s address=%s:%d",
                        member.node[:8],
                        member.name,
                        member.host,
                        member.port,
                    )
                    self._on_joined(NodeId(member.node), member.name)
                case MemberFailed(node, reason):
                    self._gone(node, reason)
                case MemberLeft(node):
                    self._gone(node, "it was stopped")
                case NameTaken(node, name, holder):
                    log.warning(
                        "name taken twice name=%s nodes=%s,%s; pins by this name are ambiguous",
                        name,
                        holder[:8],
                        node[:8],
                    )
        for node, message in self._core.messages_to_send(self._loop.time()):
            self._post.send(node, message)
        if self._timer is not None:
            self._timer.cancel()
        due = self._core.get_timer()
        self._timer = self._loop.call_at(due, self._handle_timer) if due is not None else None

    def _handle_timer(self) -> None:
        self._core.handle_timer(self._loop.time())
        self._settle()

    def _gone(self, node: NodeId, reason: str) -> None:
        name = self._names.pop(node, node[:8])
        log.warning("member gone node=%s name=%s reason=%s", node[:8], name, reason)
        self._on_failed(node, reason)
