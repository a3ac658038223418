"""The adapter of `cluster.Membership`: feed it what links tell, carry out what it wants, re-arm its timer."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from p2pnn.cluster import (
    PRESETS,
    Description,
    Dial,
    Event,
    Forget,
    LinkLost,
    LinkRestored,
    MemberDescribed,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRefuted,
    Membership,
    MemberSnapshot,
    MemberSuspected,
    NameTaken,
)
from p2pnn.node.links import Post
from p2pnn.transport import PeerIdentity, Transport
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member, Message

log = logging.getLogger("p2pnn.members")

DESCRIBE_PAUSE_S: Final = 1.0
"""Between two looks at what this node says of itself: its load changes with each job, and each change is told to all."""

DESCRIBE_PAUSE_MEMBERS: Final = 20
"""The pause is that of so many members; in a larger mesh it is longer in proportion, since all have so much to tell."""

LAG_TOLD_S: Final = 0.1
"""A loop that is less late says nothing of it, and a later one only to the next power of two: each change is told to all."""


class Owner(Protocol):
    """Who is told of changes."""

    def member_usable(self, node: NodeId, name: str) -> None:
        """A member with an open link: it joined, or its link is back."""

    def member_lost(self, node: NodeId, reason: str) -> None:
        """A usable member is none any more: its link broke, so what was on its way is lost, or it is gone."""

    def member_suspected(self, node: NodeId) -> None:
        """Somebody holds a member for dead; it may refute that."""

    def member_refuted(self, node: NodeId, name: str) -> None:
        """A suspect has shown that it lives."""

    def member_failed(self, node: NodeId, reason: str) -> None:
        """A member is gone, left or was restarted; after `member_lost`, if it was usable until now."""

    def member_described(self, node: NodeId, about: Description, uptime_s: float) -> None:
        """What a member says of itself is new or has changed; before `member_usable`, where it has said it by then. Of this node
        itself, it is told every now and then."""

    def slowness_changed(self, factor: float) -> None:
        """This node waits so many times longer than usual before it doubts others, because it is slow itself."""


class Members:
    """describe: what this node says of itself now."""

    def __init__(
        self,
        post: Post,
        boot: str,
        joins: Sequence[Address],
        transport: Transport,
        owner: Owner,
        describe: Callable[[], Description],
        preset: str = "loopback",
    ) -> None:
        self._post = post
        self._transport = transport
        self._owner = owner
        self._describe = describe
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._core = Membership(post.node, post.name, boot, joins, now, random.Random(), PRESETS[preset])
        self._timer: asyncio.TimerHandle | None = None
        self._armed: float | None = None
        self._names: dict[NodeId, str] = {}
        self._called: dict[NodeId, str] = {post.node: post.name}
        self._untold = dict.fromkeys(joins, "")
        self._described_at = self._started = now
        self._clusters: dict[NodeId, str] = {}
        self._slowness = 1
        self._lag_s = 0.0

    def start(self) -> None:
        self._describe_self(self._loop.time())
        self._settle()

    def names(self) -> dict[NodeId, str]:
        """Name by id of every member that a link leads to, this node first."""
        return {self._post.node: self._post.name, **self._names}

    def cluster_of(self, node: NodeId) -> str | None:
        """The id of the cluster whose charter a member says to hold; empty where it holds none, None before it has said so."""
        return self._clusters.get(node)

    @property
    def lag_ms(self) -> int:
        """How late this node's loop lately came to its timers, in milliseconds: 0, or at least LAG_TOLD_S and a power of two."""
        if self._lag_s < LAG_TOLD_S:
            return 0
        return int(2 ** math.floor(math.log2(self._lag_s * 1000)))

    def snapshot(self) -> tuple[MemberSnapshot, ...]:
        return self._core.snapshot(self._loop.time())

    def link_up(self, node: NodeId, peer: PeerIdentity) -> None:
        self._core.link_up(node, peer.name, peer.address.host, peer.address.port, peer.boot, self._loop.time())
        self._settle()

    def link_down(self, node: NodeId, reason: str, left: bool) -> None:
        self._core.link_down(node, reason, left, self._loop.time())
        self._settle()

    def join(self, addresses: Sequence[Address]) -> None:
        """Dial these as well, from now on."""
        self._untold |= dict.fromkeys(addresses, "")
        self._core.describe(self._describe(), self._loop.time())  # who joins is of another cluster than a moment ago
        self._core.join(addresses, self._loop.time())
        self._settle()

    def dial_reached(self, address: Address, node: NodeId) -> None:
        self._core.dial_reached(address, node, self._loop.time())
        self._settle()

    def dial_failed(self, address: Address, reason: str, refused: bool) -> None:
        if self._untold.get(address, reason) != reason:  # whoever configured this peer should know, once
            self._untold[address] = reason
            log.warning(
                "cannot join address=%s reason=%s; it is tried again: see that a node listens there (its --listen)"
                " and belongs to the same --cluster",
                address,
                reason,
            )
        self._core.dial_failed(address, reason, refused, self._loop.time())
        self._settle()

    def receive(self, node: NodeId, message: Message) -> None:
        self._core.receive(node, message, self._loop.time())
        self._settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._armed = None

    # --- the three beats: feed (above), route, transmit and re-arm

    def _settle(self) -> None:
        while (event := self._core.next_event()) is not None:
            self._route(event)
        for node, message in self._core.messages_to_send(self._loop.time()):
            self._post.send(node, message)
        due = self._core.get_timer()
        if due == self._armed:
            return  # most messages move no timer
        if self._timer is not None:
            self._timer.cancel()
        self._armed = due
        self._timer = self._loop.call_at(due, self._handle_timer) if due is not None else None

    def _handle_timer(self) -> None:
        now = self._loop.time()
        if self._armed is not None:
            self._lag_s = max(self._lag_s, now - self._armed)
        self._timer = self._armed = None
        self._core.handle_timer(now)
        if now - self._described_at >= DESCRIBE_PAUSE_S * max(1.0, len(self._names) / DESCRIBE_PAUSE_MEMBERS):
            self._described_at = now
            self._describe_self(now)
            self._lag_s /= 2  # it is forgotten in some seconds
        self._settle()
        if self._core.stretch != self._slowness:
            self._slowness = self._core.stretch
            self._owner.slowness_changed(self._slowness)

    def _describe_self(self, now: float) -> None:
        said = self._describe()
        self._core.describe(said, now)
        self._owner.member_described(self._post.node, said, now - self._started)

    def _route(self, event: Event) -> None:
        match event:
            case Dial(address):
                self._transport.dial(address)
            case Forget(address):
                self._transport.forget(address)
            case MemberJoined(member):
                log.info(
                    "member joined node=%s name=%s address=%s:%d",
                    member.node[:8],
                    member.name,
                    member.host,
                    member.port,
                )
                self._usable(member)
            case LinkRestored(member):
                log.info("link restored node=%s name=%s", member.node[:8], member.name)
                self._usable(member)
            case LinkLost(node, reason):
                log.warning("link lost node=%s name=%s reason=%s", node[:8], self._name(node), reason)
                self._lost(node, f"its link broke ({reason})")
            case MemberFailed(node, reason):
                self._gone(node, reason)
            case MemberLeft(node):
                self._gone(node, "it was stopped")
            case MemberSuspected(node, by, reason):
                log.warning(
                    "member suspected node=%s name=%s by=%s reason=%s",
                    node[:8],
                    self._name(node),
                    self._name(by),
                    reason,
                )
                self._owner.member_suspected(node)
            case MemberRefuted(node):
                log.info("suspicion refuted node=%s name=%s", node[:8], self._name(node))
                self._owner.member_refuted(node, self._name(node))
            case MemberDescribed(node, said, uptime_s):
                self._clusters[node] = said.cluster
                self._owner.member_described(node, said, uptime_s)
            case NameTaken(node, name, holder):
                log.warning(
                    "name taken twice name=%s nodes=%s,%s; pins by this name are ambiguous", name, holder[:8], node[:8]
                )

    def _usable(self, member: Member) -> None:
        node = NodeId(member.node)
        self._names[node] = self._called[node] = member.name
        self._owner.member_usable(node, member.name)

    def _lost(self, node: NodeId, reason: str) -> None:
        if self._names.pop(node, None) is not None:
            self._owner.member_lost(node, reason)

    def _gone(self, node: NodeId, reason: str) -> None:
        log.warning("member gone node=%s name=%s reason=%s", node[:8], self._name(node), reason)
        self._lost(node, reason)
        self._called.pop(node, None)
        self._clusters.pop(node, None)
        self._owner.member_failed(node, reason)

    def _name(self, node: NodeId) -> str:
        return self._called.get(node, node[:8])


def about(said: Description) -> dict[str, Any]:
    """What a node says of itself, as JSON has it."""
    return {
        "software": said.software,
        "versions": list(said.versions),
        "load": said.load,
        "draining": said.draining,
        "profile": {"gflops": said.gflops, "memory_bytes": said.memory_mib << 20} if said.gflops else None,
    }
