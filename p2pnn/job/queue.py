"""A node's one place: one job runs on a node at a time, others wait in the order in which they asked.

Coordinators take their nodes one after the other in the order of node ids, so two jobs that want the same nodes can never
hold one each and wait for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from p2pnn.types import JobId, NodeId


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who asked for the place: a start of a job. coordinator: who is told; it may change, and the ticket stays the same."""

    job: JobId
    generation: int
    coordinator: NodeId = field(compare=False)


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
        """Ask for the place. A newer start of the same job replaces an older one that waits or, since its release was lost with a
        link, holds it."""
        if ticket == self.holder:
            self.holder = ticket
            return [Grant(ticket)]
        self.waiting = [t for t in self.waiting if not (t.job == ticket.job and t.generation <= ticket.generation)]
        if self.holder and self.holder.job == ticket.job and self.holder.generation < ticket.generation:
            self.holder = None
        if len(self.waiting) >= self.LENGTH_MAX:
            return []
        self.waiting.append(ticket)
        return self._advance()

    def release(self, ticket: Ticket) -> list[Grant | Wait]:
        """Give the place back, or stop waiting for it: this start of the job and earlier ones."""
        return self._drop(lambda t: t.job == ticket.job and t.generation <= ticket.generation)

    def fence(self, generations: Mapping[JobId, int], decided: int) -> list[Grant | Wait]:
        """Forget every start that the cluster has ended or replaced.

        generations: of the starts that there are, by job. decided: the generation of a start that would be decided now; a
        higher one has been decided since.
        """
        before = (self.holder, self.waiting)
        changes = self._drop(lambda t: t.generation <= decided and generations.get(t.job) != t.generation)
        return changes if before != (self.holder, self.waiting) else []

    def adopt(self, job: JobId, generation: int, coordinator: NodeId) -> bool:
        """Another node coordinates this start from now on; False where it does not hold the place."""
        if self.holder is None or (self.holder.job, self.holder.generation) != (job, generation):
            return False
        self.holder = replace(self.holder, coordinator=coordinator)
        return True

    def _drop(self, ended: Callable[[Ticket], bool]) -> list[Grant | Wait]:
        self.waiting = [t for t in self.waiting if not ended(t)]
        if self.holder and ended(self.holder):
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
