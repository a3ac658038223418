"""The network between hosts: how long a message takes, whether it arrives, how often, and who is cut off from whom.

A link carries messages in order, as TCP does, unless the dice let one overtake. It loses single messages only by `loss`; a
link that breaks loses all that is under way, both ways, and both ends are told if the world has an `on_broken`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from random import Random

from p2pnn.types import NodeId


@dataclass(frozen=True, slots=True)
class Conditions:
    """delay_s: the least time under way. jitter_s: the mean of an exponential time on top.

    loss, duplication: probability per message. reordering: probability that a message may overtake those before it, with
    up to ten times the jitter.
    """

    delay_s: float = 0.0005
    jitter_s: float = 0.0005
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0

    def __post_init__(self) -> None:
        assert self.delay_s > 0, "an instant network would hide what happens between sending and receiving"
        assert self.jitter_s >= 0
        assert all(0 <= one <= 1 for one in (self.loss, self.duplication, self.reordering))


class Network:
    """conditions: of every link that has none of its own in `links`, a map of (source, target).

    sent, delivered: messages so far. is_cut: whether any way may be closed now. fragile: links that break under their next
    message.
    """

    def __init__(self, random: Random, fired: Counter[str], conditions: Conditions | None = None) -> None:
        self.conditions = conditions or Conditions()
        self.links: dict[tuple[NodeId, NodeId], Conditions] = {}
        self.sent = 0
        self.delivered = 0
        self.is_cut = False
        self.fragile: set[frozenset[NodeId]] = set()
        self._random = random
        self._fired = fired
        self._sides: dict[NodeId, int] = {}
        self._closed: dict[tuple[int, int], str] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._last: dict[tuple[NodeId, NodeId], float] = {}
        self._breaks: dict[tuple[NodeId, NodeId], int] = {}

    # --- cutting and mending

    def partition(self, *sides: Iterable[NodeId]) -> None:
        """Nobody of one side reaches another side; who is on none of them is on a side with all others so."""
        self.heal()
        self._sides = {node: number for number, side in enumerate(sides, 1) for node in side}
        numbers = range(len(sides) + 1)
        self._closed = {(a, b): "partition" for a in numbers for b in numbers if a != b}
        self.is_cut = True

    def partition_one_way(self, muted: Iterable[NodeId]) -> None:
        """Nothing from `muted` reaches the others; what the others say still reaches them."""
        self.heal()
        self._sides = dict.fromkeys(muted, 1)
        self._closed = {(1, 0): "one-way partition"}
        self.is_cut = True

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Nothing from source reaches target, until `heal`; the other way stays open."""
        self._cut.add((source, target))
        self.is_cut = True

    def heal(self) -> None:
        """No partition and no cut any more; conditions stay."""
        self._sides.clear()
        self._closed = {}
        self._cut.clear()
        self.is_cut = False

    def break_link(self, one: NodeId, other: NodeId) -> None:
        """Lose what is under way between two nodes; later messages find a new link."""
        for pair in ((one, other), (other, one)):
            self._breaks[pair] = self._breaks.get(pair, 0) + 1
            self._last.pop(pair, None)

    def is_open(self, source: NodeId, target: NodeId) -> bool:
        """Whether the way is open; for looking, nothing is counted."""
        sides = (self._sides.get(source, 0), self._sides.get(target, 0))
        return sides not in self._closed and (source, target) not in self._cut

    def passes(self, source: NodeId, target: NodeId) -> bool:
        """Whether the way is open; counts the fault that closes it."""
        if self._closed:
            fault = self._closed.get((self._sides.get(source, 0), self._sides.get(target, 0)))
            if fault is not None:
                self._fired[fault] += 1
                return False
        if self._cut and (source, target) in self._cut:
            self._fired["cut"] += 1
            return False
        return True

    # --- for the world

    def epoch(self, source: NodeId, target: NodeId) -> int:
        """Counts the breaks of this link: a message of an older epoch is lost."""
        return self._breaks.get((source, target), 0) if self._breaks else 0

    def arrivals(self, source: NodeId, target: NodeId, now: float) -> tuple[float, ...]:
        """When copies of a message sent now arrive: usually one time, none where it is lost."""
        self.sent += 1
        if self.is_cut and not self.passes(source, target):
            return ()
        conditions = self.links.get((source, target), self.conditions) if self.links else self.conditions
        if conditions.loss and self._random.random() < conditions.loss:
            self._fired["loss"] += 1
            return ()
        first = self._arrival(source, target, now, conditions)
        if conditions.duplication and self._random.random() < conditions.duplication:
            self._fired["duplication"] += 1
            return first, now + self._travel(conditions) * 10 * self._random.random() + conditions.delay_s
        return (first,)

    def _arrival(self, source: NodeId, target: NodeId, now: float, conditions: Conditions) -> float:
        at = now + self._travel(conditions)
        pair = (source, target)
        last = self._last.get(pair, 0.0)
        if conditions.reordering and self._random.random() < conditions.reordering:
            at += conditions.jitter_s * 10 * self._random.random()  # held up, so that later ones overtake it
            self._fired["reordering"] += 1
            return at
        at = max(at, last)
        self._last[pair] = at
        return at

    def _travel(self, conditions: Conditions) -> float:
        return conditions.delay_s - conditions.jitter_s * log(1.0 - self._random.random())
