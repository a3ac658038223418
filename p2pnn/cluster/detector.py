"""The failure detector of SWIM (Das et al. 2002, section 3.1 and 4.3), with the Nacks of Lifeguard.

In each probe interval one member is asked for an Ack, all of them in turn in a random order that changes each round, so that
no member waits longer than two rounds. Who has not answered after the probe timeout is asked again, and up to k helpers are
asked to probe it for us: the way between two nodes may be cut while both live. A helper whose own probe is not answered in
time says Nack, so that a silent helper is known for what it is: a sign that the fault is ours (`health`). If the interval ends
without any Ack, the member failed its probe; whether that makes it suspect is not decided here.

The second direct probe is not in SWIM: at N = 2 there are no helpers, and one lost message should not do what three do
elsewhere. A member without a link is probed through helpers only. Messages leave here bare; `swim` adds news to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from p2pnn.cluster.health import Health
from p2pnn.cluster.presets import Preset
from p2pnn.cluster.table import Table
from p2pnn.types import NodeId
from p2pnn.wire.messages import Ack, Message, Nack, Probe, ProbeRequest

RELAYS_MAX: Final = 256
"""Probes for others under way; beyond, an asker gets no answer and counts that as a sign of its own health, or of ours."""

NACK_AFTER: Final = 0.8
"""Of the probe timeout: a Nack must arrive before the asker's interval ends."""


@dataclass(slots=True)
class _Pending:
    """The probe of this interval. heard: helpers that said anything. direct: there was a link to ask by."""

    target: NodeId
    sequence: int
    timeout_at: float
    verdict_at: float
    direct: bool
    asked: bool = False
    acked_at: float | None = None
    helpers: list[NodeId] = field(default_factory=list)
    heard: set[NodeId] = field(default_factory=set)

    @property
    def due(self) -> float:
        return self.verdict_at if self.asked or self.acked_at is not None else self.timeout_at


@dataclass(slots=True)
class _Relay:
    """A probe for somebody else; sequence: the asker's."""

    asker: NodeId
    sequence: int
    target: NodeId
    nack_at: float
    ends_at: float
    nacked: bool = False

    @property
    def due(self) -> float:
        return self.ends_at if self.nacked else self.nack_at


class Detector:
    """Take what is to be sent from `outbox`. `handle_timer` returns the member that failed its probe, if one did."""

    def __init__(self, table: Table, preset: Preset, health: Health, random: Random) -> None:
        self.outbox: list[tuple[NodeId, Message]] = []
        self._table = table
        self._preset = preset
        self._health = health
        self._random = random
        self._round: list[NodeId] = []
        self._awaited: set[NodeId] = set()  # the same, to look up
        self._sequence = 0
        self._next_at: float | None = None
        self._pending: _Pending | None = None
        self._relays: dict[int, _Relay] = {}

    def watch(self, node: NodeId, now: float) -> None:
        """A member to be probed from now on: it comes in this round at a random place."""
        if node not in self._awaited:
            self._awaited.add(node)
            self._round.insert(self._random.randint(0, len(self._round)), node)
        if self._next_at is None:
            self._next_at = now + self._preset.probe_interval_s * self._random.random()

    def receive(self, source: NodeId, message: Probe | ProbeRequest | Ack | Nack, now: float) -> None:
        match message:
            case Probe():
                self.outbox.append((source, Ack(message.sequence)))
            case ProbeRequest():
                self._requested(source, message, now)
            case Ack():
                self._acked(source, message.sequence, now)
            case Nack():
                pending = self._pending
                if pending is not None and message.sequence == pending.sequence and source in pending.helpers:
                    pending.heard.add(source)

    def get_timer(self) -> float | None:
        times = [relay.due for relay in self._relays.values()]
        if self._pending is not None:
            times.append(self._pending.due)
        elif self._next_at is not None:
            times.append(self._next_at)
        return min(times, default=None)

    def handle_timer(self, now: float) -> NodeId | None:
        self._end_relays(now)
        failed, pending = None, self._pending
        if pending is not None and pending.due <= now < pending.verdict_at:
            self._ask_helpers(pending)
        elif pending is not None and pending.verdict_at <= now:
            self._pending = None
            failed = self._judge(pending)
        if self._pending is None and self._next_at is not None and self._next_at <= now:
            self._begin(now)
        return failed

    def postpone(self, seconds: float, now: float) -> None:
        """This node stood still for so long: answers may lie unread."""
        if self._pending is not None:
            self._pending.timeout_at += seconds
            self._pending.verdict_at += seconds
            self._next_at = self._pending.verdict_at
        for relay in self._relays.values():
            relay.nack_at += seconds
            relay.ends_at += seconds

    # --- probing for ourselves

    def _begin(self, now: float) -> None:
        target = self._take_turn()
        if target is None:
            self._next_at = None
            return
        stretch = self._health.stretch
        self._sequence += 1
        direct = target in self._table.linked
        ends = now + self._preset.probe_interval_s * stretch
        pending = _Pending(target, self._sequence, now + self._preset.probe_timeout_s * stretch, ends, direct)
        self._pending, self._next_at = pending, ends
        if direct:
            self.outbox.append((target, Probe(pending.sequence)))
        else:
            pending.timeout_at = now
            self._ask_helpers(pending)

    def _take_turn(self) -> NodeId | None:
        """The next member of this round, or of a new one."""
        for _ in range(2):
            while self._round:
                node = self._round.pop()
                self._awaited.discard(node)
                known = self._table.get(node)
                if known is not None and known.probed:
                    return node
            self._round = [node for node, known in self._table.known.items() if known.probed]
            self._random.shuffle(self._round)
            self._awaited = set(self._round)
        return None

    def _ask_helpers(self, pending: _Pending) -> None:
        pending.asked = True
        others = self._table.reachable(but=pending.target)
        pending.helpers = self._random.sample(others, min(self._preset.helpers, len(others)))
        self.outbox += [(helper, ProbeRequest(pending.sequence, pending.target)) for helper in pending.helpers]
        if pending.target in self._table.linked:
            self.outbox.append((pending.target, Probe(pending.sequence)))

    def _acked(self, source: NodeId, sequence: int, now: float) -> None:
        pending = self._pending
        if pending is not None and sequence == pending.sequence and source in (pending.target, *pending.helpers):
            pending.heard.add(source)
            if pending.acked_at is None:
                pending.acked_at = now
        relay = self._relays.get(sequence)
        if relay is not None and source == relay.target:
            del self._relays[sequence]
            self.outbox.append((relay.asker, Ack(relay.sequence)))

    def _judge(self, pending: _Pending) -> NodeId | None:
        """The interval is over. Late or no answers say something of our own health, too."""
        if pending.acked_at is not None and pending.acked_at <= pending.timeout_at:
            self._health.improve()
        elif pending.helpers:
            self._health.worsen(len(set(pending.helpers) - pending.heard))
        elif pending.direct:
            self._health.worsen()
        return pending.target if pending.acked_at is None else None

    # --- probing for others

    def _requested(self, source: NodeId, message: ProbeRequest, now: float) -> None:
        target = NodeId(message.target)
        if target not in self._table.linked:
            self.outbox.append((source, Nack(message.sequence)))
        elif len(self._relays) < RELAYS_MAX:
            self._sequence += 1
            nack_at = now + self._preset.probe_timeout_s * NACK_AFTER
            ends_at = now + self._preset.probe_interval_s
            self._relays[self._sequence] = _Relay(source, message.sequence, target, nack_at, ends_at)
            self.outbox.append((target, Probe(self._sequence)))

    def _end_relays(self, now: float) -> None:
        for sequence, relay in list(self._relays.items()):
            if relay.nack_at <= now and not relay.nacked:
                relay.nacked = True
                self.outbox.append((relay.asker, Nack(relay.sequence)))
            if relay.ends_at <= now:
                del self._relays[sequence]
