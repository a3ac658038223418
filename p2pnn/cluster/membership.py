"""Membership as the rest of the program sees it: links and messages in, members and dials out.

`introduction` decides who is dialled, `swim` who is alive. Here the two meet, and here is the one place where a node becomes
a member and stops being one (`_judge`): it is a member from the moment at which a link is open *and* the fact that counts
speaks of that very process as living, until that fact says dead or left, or speaks of another process (it was restarted).
So hearsay makes no member, and a broken link ends no membership: it only makes a suspect, and is told as LinkLost.

This is a core: it owns no socket and no clock. Its owner feeds link_up, link_down, dial_failed, dial_reached, describe and
receive, then takes messages_to_send and next_event until they are empty, and calls handle_timer at get_timer's time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random

from p2pnn.cluster.events import (
    Event,
    LinkLost,
    LinkRestored,
    MemberDescribed,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRefuted,
    MemberSnapshot,
    MemberState,
    MemberSuspected,
    NameTaken,
)
from p2pnn.cluster.facts import Description, described, living, member_of
from p2pnn.cluster.introduction import Introduction, Limits
from p2pnn.cluster.presets import PRESETS, Preset
from p2pnn.cluster.swim import Swim
from p2pnn.cluster.table import Known
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Life, Member, Message


class Membership:
    """The members as this node sees them.

    node, name, boot: this node's own. joins: the configured addresses; they are dialled at once and never forgotten.
    now: seconds of a clock that never goes back, here and in every call.
    """

    def __init__(
        self,
        node: NodeId,
        name: str,
        boot: str,
        joins: Sequence[Address],
        now: float,
        random: Random,
        preset: Preset = PRESETS["loopback"],
        limits: Limits | None = None,
    ) -> None:
        self._node = node
        self._name = name
        self._limits = limits or Limits()
        self._events: deque[Event] = deque()
        self._introduction = Introduction(node, joins, self._limits, now, random, self._events)
        self._swim = Swim(node, name, boot, preset, self._limits.members_max, now, random)
        self._table = self._swim.table
        self._sweep_at: float | None = None
        self._holders: dict[str, NodeId] = {}  # name → the member that had it first

    # --- what the owner feeds

    def link_up(self, node: NodeId, name: str, host: str, port: int, boot: str, now: float) -> None:
        """A control link to `node` is open. host, port: where others should dial it."""
        address = Address(host, port)
        alone, before = not self._table.linked, self._table.get(node)
        back = before is not None and before.fact.life is Life.DEAD
        if before is not None and before.address != address:
            self._introduction.forget(before.address)
        self._displace(node, address, now)
        self._introduction.settled(node)
        self._swim.link_up(node, name, address, boot, now)
        if alone or any(address == at or join.node == node for at, join in self._introduction.joins.items()):
            self._swim.push_pull(node)  # two parts of the mesh may meet here
        elif back:
            self._swim.push_pull_soon(node, now)
        self._settle(now)

    def link_down(self, node: NodeId, reason: str, left: bool, now: float) -> None:
        """The control link to `node` is gone. left: it said goodbye; otherwise it broke, for `reason`."""
        known = self._table.get(node)
        if known is None or not known.linked:
            return
        self._swim.link_down(node, reason, left, now)
        other = self._table.at.get(known.address)
        if other is not None:
            self._displace(other, known.address, now)
        elif left:
            self._introduction.forget(known.address)
        else:
            self._introduction.dial(known.address)
        self._settle(now)

    def dial_reached(self, address: Address, node: NodeId, now: float) -> None:
        """`node` answered at the dialled `address`."""
        known = self._table.get(node)
        if known is None or known.address != address:
            self._introduction.forget(address)  # hearsay was wrong or has aged: somebody else lives there
        self._introduction.reached(address, node, now)
        for other in self._unlinked_at(address):
            if other.fact.node != node:
                other.trouble, other.trouble_since = "another node answers at its address", now

    def dial_failed(self, address: Address, reason: str, refused: bool, now: float) -> None:
        """An attempt to reach `address` failed; the transport tries again by itself. refused: nobody listens there."""
        self._introduction.failed(address, reason, now)
        for known in self._unlinked_at(address):
            if not known.trouble:
                known.trouble_since = now
            known.trouble = reason
            if refused:
                self._swim.refused(NodeId(known.fact.node), now)
        self._settle(now)

    def join(self, addresses: Sequence[Address], now: float) -> None:
        """Dial these as well, as if they had been configured from the start."""
        self._introduction.join(addresses, now)

    def describe(self, description: Description, now: float) -> None:
        """What this node says of itself from now on."""
        self._swim.describe(description, now)

    def receive(self, source: NodeId, message: Message, now: float) -> None:
        """A message of membership; what comes from no linked node is ignored."""
        self._swim.receive(source, message, now)
        self._settle(now)

    @property
    def stretch(self) -> int:
        """How many times longer this node waits than its preset says, because it is slow itself (`health`)."""
        return self._swim.health.stretch

    # --- what the owner takes

    def get_timer(self) -> float | None:
        """When handle_timer wants to be called next."""
        times = (self._swim.get_timer(), self._introduction.get_timer(), self._sweep_at)
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Whoever calls late was held up itself: that is counted against this node, not against others."""
        self._swim.handle_timer(now)
        self._introduction.handle_timer(now)
        if self._sweep_at is not None and self._sweep_at <= now:
            self._sweep(now)
        self._settle(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Message]]:
        """Messages since the last call, for control links; one to a node that is no longer linked may be dropped."""
        return self._swim.messages_to_send()

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # --- for people and for the owner

    def alive(self) -> tuple[Member, ...]:
        """The members with an open link, without this node, ordered by id."""
        found = [known for known in self._table.known.values() if known.joined and known.linked]
        return tuple(sorted((member_of(known.fact, known.address) for known in found), key=lambda m: m.node))

    def snapshot(self, now: float) -> tuple[MemberSnapshot, ...]:
        """All members but this one, by name, then the configured addresses behind which no member is known."""
        known = sorted(self._table.known.values(), key=lambda one: (one.fact.name, one.fact.node))
        rows = [self._row(one, now) for one in known]
        shown = {row.address for row in rows}
        rows += [
            MemberSnapshot(NodeId(""), "", address, join.state, join.reason, now - join.since)
            for address, join in self._introduction.joins.items()
            if address not in shown and (join.node is None or join.node not in self._table.known)
        ]
        return tuple(rows)

    # --- inside: who is a member

    def _settle(self, now: float) -> None:
        touched, self._swim.touched = self._swim.touched, {}
        for node in touched:
            known = self._table.get(node)
            if known is not None:
                self._judge(node, known, now)
                self._keep_dialled(node, known, now)

    def _judge(self, node: NodeId, known: Known, now: float) -> None:
        """Tell the owner what has changed about a member: the one place where one becomes or stops being one."""
        fact = known.fact
        if known.joined and not known.probed:
            known.joined = known.told_suspect = False
            known.told_about = None
            self._holders = {name: holder for name, holder in self._holders.items() if holder != node}
            if fact.life is Life.LEFT:
                self._events.append(MemberLeft(node))
            else:
                reason = fact.reason if fact.life is Life.DEAD else "it was restarted"
                self._events.append(MemberFailed(node, reason))
        elif known.joined:
            self._tell_link(node, known)
            self._tell_suspicion(node, known)
            self._tell_about(node, known, now)
        elif known.probed and known.linked:
            known.joined = known.told_linked = True
            self._warn_of_equal_names(fact.name, node)
            self._swim.watch(node, now)
            self._tell_about(node, known, now)
            self._events.append(MemberJoined(member_of(fact, known.address)))
            self._tell_suspicion(node, known)

    def _tell_link(self, node: NodeId, known: Known) -> None:
        if known.linked != known.told_linked:
            known.told_linked = known.linked
            if known.linked:
                self._events.append(LinkRestored(member_of(known.fact, known.address)))
            else:
                self._events.append(LinkLost(node, known.trouble))

    def _tell_suspicion(self, node: NodeId, known: Known) -> None:
        suspect = known.fact.life is Life.SUSPECT
        if suspect != known.told_suspect:
            known.told_suspect = suspect
            fact = known.fact
            self._events.append(MemberSuspected(node, NodeId(fact.by), fact.reason) if suspect else MemberRefuted(node))

    def _tell_about(self, node: NodeId, known: Known, now: float) -> None:
        """Of what it says itself, that is: what was taken from its Hello (incarnation 0) says nothing."""
        about = described(known.fact)
        if known.fact.incarnation > 0 and about != known.told_about:
            known.told_about = about
            known.started = min(known.started, now - known.fact.uptime_s)
            self._events.append(MemberDescribed(node, about, now - known.started))

    def _warn_of_equal_names(self, name: str, node: NodeId) -> None:
        if name == self._name:
            self._events.append(NameTaken(node, name, self._node))
            return
        holder = self._holders.get(name)
        known = self._table.get(holder) if holder is not None else None
        if holder not in (None, node) and known is not None and known.joined and known.fact.name == name:
            self._events.append(NameTaken(node, name, NodeId(known.fact.node)))
        else:
            self._holders[name] = node

    # --- inside: who is dialled

    def _keep_dialled(self, node: NodeId, known: Known, now: float) -> None:
        """A living node without a link is dialled, or awaited; one that is gone or was never met is forgotten in time."""
        if known.linked:
            return
        told = Address(known.fact.host, known.fact.port)
        if living(known.fact):
            if not known.met and told.port and told != known.address:
                self._introduction.forget(known.address)
                self._introduction.settled(node)
                known.address = told
            self._introduction.hear_of(node, known.address, now)
        elif known.fact.life is Life.LEFT:
            self._introduction.forget(known.address)
            self._introduction.settled(node)
        if self._ages(known) and self._sweep_at is None:
            self._sweep_at = now + self._limits.forget_after_s

    def _displace(self, node: NodeId, address: Address, now: float) -> None:
        """An address houses one node: whoever was there before, and has no link, will not come back there."""
        for known in list(self._unlinked_at(address)):
            former = NodeId(known.fact.node)
            if former != node:
                self._swim.displace(former, "another node listens at its address", now)
                self._judge(former, known, now)
                self._table.drop(former)

    def _unlinked_at(self, address: Address) -> list[Known]:
        if len(self._table.linked) == len(self._table.known):
            return []
        return [known for known in self._table.known.values() if not known.linked and known.address == address]

    def _ages(self, known: Known) -> bool:
        return not known.linked and not known.probed and known.address not in self._introduction.joins

    def _sweep(self, now: float) -> None:
        """Forget who has been gone, or out of reach since it was heard of, for long enough."""
        self._sweep_at = None
        for node, known in list(self._table.known.items()):
            if not self._ages(known):
                continue
            due = (known.heard if living(known.fact) else known.since) + self._limits.forget_after_s
            if due <= now:
                self._swim.forget(node)
                self._introduction.forget(known.address)
                self._introduction.settled(node)
            else:
                self._sweep_at = min(due, self._sweep_at or due)

    # --- inside: what a person sees

    def _row(self, known: Known, now: float) -> MemberSnapshot:
        fact = known.fact
        state, reason, since, by = MemberState.ALIVE, "", known.since, list[NodeId]()
        if fact.life is Life.LEFT:
            state = MemberState.LEFT
        elif fact.life is Life.DEAD:
            state, reason, by = MemberState.DEAD, fact.reason, [NodeId(fact.by)]
        elif not known.met:
            state = MemberState.UNREACHABLE if known.trouble else MemberState.CONNECTING
            reason, since = known.trouble, known.trouble_since if known.trouble else known.heard
        elif fact.life is Life.SUSPECT:
            state, reason = MemberState.SUSPECT, fact.reason
            by = known.suspicion.accusers if known.suspicion else [NodeId(fact.by)]
        elif not known.linked:
            state, reason, since = MemberState.UNREACHABLE, f"{known.trouble}; others reach it", known.trouble_since
        names = tuple(self._name_of(node) for node in by if node)
        node, about = NodeId(fact.node), described(fact)
        return MemberSnapshot(node, fact.name, known.address, state, reason, now - since, fact.boot, names, about)

    def _name_of(self, node: NodeId) -> str:
        if node == self._node:
            return self._name
        known = self._table.get(node)
        return known.fact.name if known else node[:8]
