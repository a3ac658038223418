"""Membership by introduction: any one peer is enough, because it tells the others.

Each node keeps a control link to every other node. It begins with the addresses that a person configured (`--join`).
At each change of the set of nodes that it holds a link to, a node sends that set (Roster) to all of them; who hears of
an unknown node dials it. So from any connected graph of first links the full mesh follows, in as many rounds as the
graph's diameter has doublings. Of two nodes that hear of each other at once, the one with the smaller id dials; the
other waits `patience_s` for that and then dials as well, for the case that only its direction works.

A link that breaks is a failed member: it is dialled on (the transport spaces the attempts) until it answers, or until
it was out of reach for `forget_after_s`. A restarted node has another boot text, so that nobody takes it for the one
that remembers. A roster is hearsay: it can only make us dial, never declare somebody dead or alive.

This is a core: it owns no socket and no clock. Its owner feeds link_up, link_down, dial_failed, dial_reached and
receive, then takes messages_to_send and next_event until they are empty, and calls handle_timer at get_timer's time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from p2pnn.cluster.events import (
    Dial,
    Event,
    Forget,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSnapshot,
    MemberState,
    NameTaken,
)
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Member, Message, Roster

_NODE = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Limits:
    """patience_s: how long the larger id waits to be dialled; more saves doubled links, less finds one-way networks sooner.

    forget_after_s: how long an unreachable member that nobody configured is dialled and shown.
    members_max: nodes known at once; a roster cannot make this node dial, or remember, more.
    """

    patience_s: float = 1.0
    forget_after_s: float = 600.0
    members_max: int = 1024

    def __post_init__(self) -> None:
        assert 0 < self.patience_s < self.forget_after_s
        assert self.members_max > 0


@dataclass(slots=True)
class _Known:
    """A node that we hold a link to, held one to, or were told of."""

    member: Member
    state: MemberState
    reason: str
    since: float
    dial_at: float | None = None

    @property
    def address(self) -> Address:
        return Address(self.member.host, self.member.port)


@dataclass(slots=True)
class _Join:
    """A configured address. node: who answered there last, if anybody did."""

    state: MemberState
    reason: str
    since: float
    node: NodeId | None = None


class Membership:
    """The members as this node sees them.

    node, name: this node's own. joins: the configured addresses; they are dialled at once and never forgotten.
    now: seconds of a clock that never goes back, here and in every call.
    """

    def __init__(
        self,
        node: NodeId,
        name: str,
        joins: Sequence[Address],
        now: float,
        random: Random,
        limits: Limits | None = None,
    ) -> None:
        self._node = node
        self._name = name
        self._random = random
        self._limits = limits or Limits()
        self._known: dict[NodeId, _Known] = {}
        self._joins = {address: _Join(MemberState.CONNECTING, "", now) for address in joins}
        self._dialled: set[Address] = set()
        self._events: deque[Event] = deque()
        self._outbox: list[tuple[NodeId, Message]] = []
        for address in self._joins:
            self._dial(address)

    # --- what the owner feeds

    def link_up(self, node: NodeId, name: str, host: str, port: int, boot: str, now: float) -> None:
        """A control link to `node` is open. host, port: where others should dial it."""
        member = Member(node, name, host, port, boot)
        before = self._known.get(node)
        if before is not None and before.state is MemberState.ALIVE:
            if before.member == member:
                return
            reason = "it was restarted" if before.member.boot != boot else "it came back under another address or name"
            self._events.append(MemberFailed(node, reason))
        self._drop_former_tenants(member)
        if before is not None and before.address != Address(host, port):
            self._forget(before.address)
        self._warn_of_equal_names(member)
        self._known[node] = _Known(member, MemberState.ALIVE, "", now)
        self._events.append(MemberJoined(member))
        self._tell_all()

    def link_down(self, node: NodeId, reason: str, left: bool, now: float) -> None:
        """The control link to `node` is gone. left: it said goodbye; otherwise it failed, for `reason`."""
        known = self._known.get(node)
        if known is None or known.state is not MemberState.ALIVE:
            return
        known.since = now
        if left:
            known.state, known.reason = MemberState.LEFT, "it left"
            self._events.append(MemberLeft(node))
            self._forget(known.address)
        else:
            known.state, known.reason = MemberState.UNREACHABLE, reason
            self._events.append(MemberFailed(node, reason))
            self._dial(known.address)
        self._tell_all()

    def dial_reached(self, address: Address, node: NodeId, now: float) -> None:
        """`node` answered at the dialled `address`."""
        join = self._joins.get(address)
        if join is not None:
            if join.node != node or join.state is not MemberState.ALIVE:
                join.node, join.state, join.reason, join.since = node, MemberState.ALIVE, "", now
            return
        if node not in self._known or self._known[node].address != address:
            self._forget(address)  # hearsay was wrong or has aged: somebody else lives there, and is known by its link
        for known in self._known.values():
            expected_here = known.address == address and known.member.node != node
            if expected_here and known.state in (MemberState.CONNECTING, MemberState.UNREACHABLE):
                known.state, known.reason = MemberState.UNREACHABLE, "another node answers at its address"

    def dial_failed(self, address: Address, reason: str, now: float) -> None:
        """An attempt to reach `address` failed; the transport tries again by itself."""
        join = self._joins.get(address)
        if join is not None:
            if join.state is not MemberState.UNREACHABLE:
                join.since = now
            join.state, join.reason = MemberState.UNREACHABLE, reason
        for known in self._known.values():
            if known.address == address and known.state in (MemberState.CONNECTING, MemberState.UNREACHABLE):
                if known.state is MemberState.CONNECTING:
                    known.since = now
                known.state, known.reason = MemberState.UNREACHABLE, reason

    def receive(self, source: NodeId, message: Message, now: float) -> None:
        """A Roster from a member; what is not one, or comes from no living member, is ignored."""
        teller = self._known.get(source)
        if not isinstance(message, Roster) or teller is None or teller.state is not MemberState.ALIVE:
            return
        for member in message.members:
            if member.node != self._node and _plausible(member):
                self._hear_of(_as_seen_from_here(member, teller.member.host), now)

    # --- what the owner takes

    def get_timer(self) -> float | None:
        """When handle_timer wants to be called next."""
        times = [known.dial_at for known in self._known.values() if known.dial_at is not None]
        times += [known.since + self._limits.forget_after_s for known in self._known.values() if self._ages(known)]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        for node, known in list(self._known.items()):
            if known.dial_at is not None and known.dial_at <= now:
                known.dial_at = None
                self._dial(known.address)
            if self._ages(known) and known.since + self._limits.forget_after_s <= now:
                del self._known[node]
                self._forget(known.address)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Message]]:
        """Messages since the last call, for control links; one to a node that is no longer linked may be dropped."""
        out, self._outbox = self._outbox, []
        return out

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # --- for people and for the owner

    def alive(self) -> tuple[Member, ...]:
        """The members with a living link, without this node, ordered by id."""
        living = [known.member for known in self._known.values() if known.state is MemberState.ALIVE]
        return tuple(sorted(living, key=lambda member: member.node))

    def snapshot(self, now: float) -> tuple[MemberSnapshot, ...]:
        """All members but this one, by name, then the configured addresses behind which no member is known."""
        rows = [
            MemberSnapshot(
                node, known.member.name, known.address, known.state, known.reason, now - known.since, known.member.boot
            )
            for node, known in sorted(self._known.items(), key=lambda item: (item[1].member.name, item[0]))
        ]
        shown = {row.address for row in rows}
        rows += [
            MemberSnapshot(NodeId(""), "", address, join.state, join.reason, now - join.since)
            for address, join in self._joins.items()
            if address not in shown and (join.node is None or join.node not in self._known)
        ]
        return tuple(rows)

    # --- inside

    def _hear_of(self, member: Member, now: float) -> None:
        node, address = NodeId(member.node), Address(member.host, member.port)
        known = self._known.get(node)
        if known is not None:
            same = known.member == member or known.member.boot == member.boot
            if known.state is MemberState.ALIVE or (known.state is MemberState.LEFT and same):
                return  # our own link knows better; and a roster that crossed a goodbye revives nobody
            if known.address == address:
                known.member = member
                if known.state is MemberState.LEFT:
                    known.state, known.reason, known.since = MemberState.CONNECTING, "", now
                    self._dial(address)
                return
            self._forget(known.address)
        elif len(self._known) >= self._limits.members_max:
            return
        entry = _Known(member, MemberState.CONNECTING, "", now)
        self._known[node] = entry
        if self._node < node:
            self._dial(address)
        else:
            entry.dial_at = now + self._limits.patience_s * (1 + self._random.random())

    def _drop_former_tenants(self, member: Member) -> None:
        """An address houses one node: whoever was there before, and is out of reach, will not come back there."""
        for node, known in list(self._known.items()):
            same_place = known.address == Address(member.host, member.port)
            if same_place and node != member.node and known.state is not MemberState.ALIVE:
                del self._known[node]

    def _warn_of_equal_names(self, member: Member) -> None:
        if member.name == self._name:
            self._events.append(NameTaken(NodeId(member.node), member.name, self._node))
            return
        for other in self.alive():
            if other.name == member.name and other.node != member.node:
                self._events.append(NameTaken(NodeId(member.node), member.name, NodeId(other.node)))
                return

    def _tell_all(self) -> None:
        """Replace unsent rosters by the newest, one to each living member."""
        members = self.alive()
        self._outbox = [(NodeId(member.node), Roster(members)) for member in members]

    def _ages(self, known: _Known) -> bool:
        return known.state is not MemberState.ALIVE and known.address not in self._joins

    def _dial(self, address: Address) -> None:
        if address.port and address not in self._dialled:  # port 0: a node that does not listen
            self._dialled.add(address)
            self._events.append(Dial(address))

    def _forget(self, address: Address) -> None:
        if address in self._dialled and address not in self._joins:
            self._dialled.discard(address)
            self._events.append(Forget(address))


def _plausible(member: Member) -> bool:
    return (
        _NODE.match(member.node) is not None
        and 0 < len(member.name) <= 255
        and 0 < len(member.host) <= 255
        and 0 < member.port < 65536
    )


def _as_seen_from_here(member: Member, teller_host: str) -> Member:
    """A loopback address means the teller's machine, so seen from another machine it is the teller's host."""
    if _loopback(member.host) and not _loopback(teller_host):
        return Member(member.node, member.name, teller_host, member.port, member.boot)
    return member


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
