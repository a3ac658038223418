"""A node's one place: one job runs on a node at a time, others wait in the order in which they asked.

Coordinators take their nodes one after the other in the order of node ids, so two jobs that want the same nodes can never
hold one each and wait for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnn.types import JobId, NodeId


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who asked for the place: a start of a job, and the node that coordinates it."""

    job: JobId
    generation: int
    coordinator: NodeId


@dataclass(frozen=True, slots=True)
class Grant:
    """The place is this ticket's now."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Wait:
    """`ticket` waits behind `behind`, at `position` (1 is next)."""

    ticket: Ticket
    behind: JobId
    position: int


class PlaceQueue:
    """Pure. Every verb returns what to tell the coordinators."""

    LENGTH_MAX = 256
    """Waiting tickets; a reservation over it is dropped, and its coordinator told so."""

    def __init__(self) -> None:
        self.holder: Ticket | None = None
        self.waiting: list[Ticket] = []

    def reserve(self, ticket: Ticket) -> list[Grant | Wait]:
        """Ask for the place. A newer start of the same job replaces an older one that waits or holds it. One of the same
        generation by another coordinator does not: which of them goes on is theirs to find out."""
        if ticket == self.holder:
            return [Grant(ticket)]
        self.waiting = [t for t in self.waiting if not self._replaced(t, ticket)]
        if self.holder is not None and self._replaced(self.holder, ticket) and self.holder != ticket:
            self.holder = None  # its release was lost with a link
        if len(self.waiting) >= self.LENGTH_MAX:
            return []
        self.waiting.append(ticket)
        return self._advance()

    @staticmethod
    def _replaced(old: Ticket, new: Ticket) -> bool:
        return old.job == new.job and (old.generation < new.generation or old == new)

    def release(self, ticket: Ticket) -> list[Grant | Wait]:
        """Give the place back, or stop waiting for it: this start of the job and earlier ones, of this coordinator."""

        def ended(t: Ticket) -> bool:
            return (t.job, t.coordinator) == (ticket.job, ticket.coordinator) and t.generation <= ticket.generation

        self.waiting = [t for t in self.waiting if not ended(t)]
        if self.holder and ended(self.holder):
            self.holder = None
        return self._advance()

    def drop_coordinator(self, node: NodeId) -> list[Grant | Wait]:
        """A coordinator is gone: forget what it asked for."""
        self.waiting = [t for t in self.waiting if t.coordinator != node]
        if self.holder and self.holder.coordinator == node:
            self.holder = None
        return self._advance()

    def _advance(self) -> list[Grant | Wait]:
        if self.holder is None and self.waiting:
            self.holder = self.waiting.pop(0)
            return [Grant(self.holder), *self._positions()]
        return list(self._positions())

    def _positions(self) -> list[Wait]:
        if self.holder is None:
            return []
        return [Wait(t, self.holder.job, position) for position, t in enumerate(self.waiting, 1)]
