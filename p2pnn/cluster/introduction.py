"""Who is dialled: any one peer is enough, because it tells of the others.

Each node keeps a control link to every other node. It begins with the addresses that a person configured (`--join`); who
hears of an unknown node dials it. So from any connected graph of first links the full mesh follows. Of two nodes that hear
of each other at once, the one with the smaller id dials; the other waits `patience_s` for that and then dials as well, for
the case that only its direction works. A link that broke is dialled at once by both (the transport spaces the attempts).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from p2pnn.cluster.events import Dial, Event, Forget, MemberState
from p2pnn.types import Address, NodeId


@dataclass(frozen=True, slots=True)
class Limits:
    """patience_s: how long the larger id waits to be dialled; more saves doubled links, less finds one-way networks sooner.

    forget_after_s: how long a member that is gone, or was never reached, is dialled and shown, unless it is configured.
    members_max: nodes known at once; hearsay cannot make this node dial, or remember, more.
    """

    patience_s: float = 1.0
    forget_after_s: float = 600.0
    members_max: int = 1024

    def __post_init__(self) -> None:
        assert 0 < self.patience_s < self.forget_after_s
        assert self.members_max > 0


@dataclass(slots=True)
class Join:
    """A configured address. node: who answered there last, if anybody did."""

    state: MemberState
    reason: str
    since: float
    node: NodeId | None = None


class Introduction:
    """Puts Dial and Forget into `events`. joins: the configured addresses; they are dialled at once and never forgotten."""

    def __init__(
        self,
        node: NodeId,
        joins: Sequence[Address],
        limits: Limits,
        now: float,
        random: Random,
        events: deque[Event],
    ) -> None:
        self.joins = {address: Join(MemberState.CONNECTING, "", now) for address in joins}
        self._node = node
        self._limits = limits
        self._random = random
        self._events = events
        self._dialled: set[Address] = set()
        self._waiting: dict[NodeId, tuple[float, Address]] = {}
        for address in self.joins:
            self.dial(address)

    def join(self, addresses: Sequence[Address], now: float) -> None:
        """These are configured from now on, as `joins` are."""
        for address in addresses:
            if address not in self.joins:
                self.joins[address] = Join(MemberState.CONNECTING, "", now)
            self.dial(address)

    def hear_of(self, node: NodeId, address: Address, now: float) -> None:
        """A node that there should be a link to: dial it, or wait for it to dial. Harmless when that is under way."""
        if address in self._dialled or node in self._waiting:
            return
        if self._node < node:
            self.dial(address)
        else:
            self._waiting[node] = (now + self._limits.patience_s * (1 + self._random.random()), address)

    def settled(self, node: NodeId) -> None:
        """It is linked, or gone: nobody waits for it."""
        self._waiting.pop(node, None)

    def dial(self, address: Address) -> None:
        if address.port and address not in self._dialled:  # port 0: a node that does not listen
            self._dialled.add(address)
            self._events.append(Dial(address))

    def forget(self, address: Address) -> None:
        if address in self._dialled and address not in self.joins:
            self._dialled.discard(address)
            self._events.append(Forget(address))

    def reached(self, address: Address, node: NodeId, now: float) -> None:
        """`node` answered at a dialled address."""
        join = self.joins.get(address)
        if join is not None and (join.node != node or join.state is not MemberState.ALIVE):
            join.node, join.state, join.reason, join.since = node, MemberState.ALIVE, "", now

    def failed(self, address: Address, reason: str, now: float) -> None:
        join = self.joins.get(address)
        if join is not None:
            if join.state is not MemberState.UNREACHABLE:
                join.since = now
            join.state, join.reason = MemberState.UNREACHABLE, reason

    def get_timer(self) -> float | None:
        return min((due for due, _ in self._waiting.values()), default=None)

    def handle_timer(self, now: float) -> None:
        for node, (due, address) in list(self._waiting.items()):
            if due <= now:
                del self._waiting[node]
                self.dial(address)
