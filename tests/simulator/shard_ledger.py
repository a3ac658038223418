"""What a replicated shard promises, checked from outside at every step.

- Entry n is one update, whoever applies it; entries of one number and one ordering generation are one update in all logs.
- No update is applied twice, and none that was refused; each worker's are applied in their order.
- One process acknowledges per generation.
- Every process of the committed in-sync set holds every acknowledged update, and knows the last sequence of each worker, at every
  moment; consecutive in-sync sets have a process in common.
- At the end every acknowledged update reads exactly 1.

Each broken promise raises AssertionError, which the world turns into a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.holding import Role
from p2pnn.replication.replica import Replica

Name = tuple[int, int]
"""Worker incarnation and sequence."""


class Ledger:
    """Of one run. acknowledged: how many updates were. acknowledged_at: when one was last, in true time.

    configuration: the newest that is committed. living: the replicas that run now, by process.
    """

    def __init__(self) -> None:
        self.acknowledged = 0
        self.acknowledged_at = 0.0
        self.configurations = 0
        self.transfers = 0
        self.configuration: Configuration | None = None
        self.living: dict[Member, Replica] = {}
        self.refused: set[int] = set()
        self.waited_s = 0.0
        self._cells: dict[Name, int] = {}
        self._order: dict[int, Name] = {}
        self._named: dict[tuple[int, int], Name] = {}
        self._acknowledgers: dict[int, Member] = {}
        self._certain = 0
        self._certain_of: dict[int, int] = {}

    # --- what is seen

    def pushes(self, worker: int, sequence: int, cell: int) -> None:
        """A worker pushes an update that adds 1 to a cell of its own."""
        self._cells[worker, sequence] = cell

    def applies(self, number: int, worker: int, sequence: int, cells: Sequence[int]) -> None:
        """A replica applies entry `number`; cells: none where the update was refused."""
        name = (worker, sequence)
        known = self._order.setdefault(number, name)
        assert known == name, f"entry {number} is {known} here and {name} there"
        cell = self._cells[name]
        wanted = [] if cell in self.refused else [cell]
        assert list(cells) == wanted, f"{name} is applied as {list(cells)}, and was pushed as {wanted}"

    def acknowledges(
        self, now: float, member: Member, generation: int, worker: int, sequence: int, number: int
    ) -> None:
        """A primary is about to say that all in-sync replicas hold a worker's updates up to this sequence."""
        first = self._acknowledgers.setdefault(generation, member)
        assert first == member, f"{first} and {member} acknowledge in generation {generation}"
        self._order.setdefault(number, (worker, sequence))
        if sequence > self._certain_of.get(worker, 0):
            self.acknowledged += sequence - self._certain_of.get(worker, 0)
            self._certain_of[worker] = sequence
            self.acknowledged_at = now
        if number > self._certain:
            self._certain = number
            self._all_hold()

    def certain(self, number: int) -> None:
        """Somebody is about to be told what follows from the entries up to this one."""
        if number > self._certain:
            self._certain = number
            self._all_hold()

    def commits(self, configuration: Configuration) -> None:
        """The configuration manager replaces the committed configuration."""
        before, self.configuration = self.configuration, configuration
        self.configurations += 1
        if before is not None:
            assert configuration.generation > before.generation, "a generation goes back"
            assert set(before.in_sync) & set(configuration.in_sync), f"{before} and {configuration} have none in common"
        self._all_hold()

    def check(self, member: Member, replica: Replica) -> None:
        """After every step of a replica's host."""
        for entry in replica.log.after(replica.committed):
            name = (entry.worker, entry.sequence)
            known = self._named.setdefault((entry.number, entry.ordered), name)
            assert known == name, f"entry {entry.number} of generation {entry.ordered} is {known} here and {name} there"
        if self.configuration is not None and member in self.configuration.in_sync:
            self._holds(member, replica)

    def primary(self) -> Replica | None:
        """The living primary of the committed configuration, if it knows that it is that."""
        assert self.configuration is not None
        replica = self.living.get(self.configuration.primary)
        is_it = replica is not None and replica.role is Role.PRIMARY
        return (
            replica if is_it and replica is not None and replica.generation == self.configuration.generation else None
        )

    def read(self, counts: Mapping[int, int]) -> None:
        """What a primary's state reads at the end."""
        for (worker, sequence), cell in self._cells.items():
            is_certain = sequence <= self._certain_of.get(worker, 0)
            count = counts.get(cell, 0)
            assert count <= 1, f"update {(worker, sequence)} reads {count}"
            if cell in self.refused:
                assert count == 0, f"update {(worker, sequence)} was refused, and reads {count}"
            elif is_certain:
                assert count == 1, f"update {(worker, sequence)} was acknowledged, and reads {count}"

    # --- inside

    def _all_hold(self) -> None:
        for member in () if self.configuration is None else self.configuration.in_sync:
            replica = self.living.get(member)
            if replica is not None:
                self._holds(member, replica)

    def _holds(self, member: Member, replica: Any) -> None:
        log = replica.log
        held = log.complete(replica.committed)
        assert held >= self._certain, (
            f"{member} is in sync and holds entries up to {held}; acknowledged are those up to {self._certain}"
        )
        for worker, sequence in self._certain_of.items():
            known_to = max(replica.sessions.last(worker), log.latest(worker))
            assert known_to >= sequence, (
                f"{member} is in sync and knows of {worker}'s updates up to {known_to}; {sequence} is acknowledged"
            )
        for entry in log.after(replica.committed):
            if entry.number > self._certain:
                break
            name = (entry.worker, entry.sequence)
            known = self._order.get(entry.number, name)
            assert known == name, f"{member} is in sync and holds {name} as entry {entry.number}, which is {known}"
