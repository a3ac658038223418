"""What every replica of a shard has, whatever its role: the log, the committed part of it, and the fence."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import NamedTuple

from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import Entry, Log, Sequences, Sessions
from p2pnn.replication.outcomes import Apply, FetchConfiguration, Outcome
from p2pnn.replication.staging import Body, Staging
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.replication import Superseded


class Role(IntEnum):
    OUTSIDE = 0  # no member of the newest configuration that it knows
    LEARNER = 1
    BACKUP = 2
    PRIMARY = 3


class Shard(NamedTuple):
    """Which one: a job, and the number of the shard in it."""

    job: str
    number: int


Parcel = tuple[NodeId, Message, Body]
"""A message to a node; the body is empty for a message that has none."""


class Holding:
    """me: this process. It begins with the state that its job began with, after entry 0. sessions: the owner's, if it has any."""

    def __init__(
        self,
        shard: Shard,
        me: Member,
        now: float,
        limits: Limits,
        timing: Timing,
        sessions: Sequences | None = None,
    ) -> None:
        self.shard = shard
        self.me = me
        self.configuration: Configuration | None = None
        self.role = Role.OUTSIDE
        self.committed = 0
        self.log = Log()
        self.sessions: Sequences = Sessions() if sessions is None else sessions
        self._applied = None if sessions is None else 0
        self._limits = limits
        self._timing = timing
        self._staging = Staging(limits)
        self._outbox: list[Parcel] = []
        self._events: deque[Outcome] = deque()
        self._known = 0
        self._fetch_due = now
        self._since = now

    @property
    def generation(self) -> int:
        return 0 if self.configuration is None else self.configuration.generation

    # --- the rules

    def is_current(self, source: NodeId, generation: int, now: float) -> bool:
        """The fence. A lower generation is rejected; for a higher one, and before any, the committed configuration is fetched."""
        mine = self.generation
        if generation == mine and mine > 0:
            return True
        if generation < mine:
            self._send(source, Superseded(*self.shard, mine))
        else:
            self._hear_of(generation, now)
        return False

    def is_me(self, member: Member) -> bool:
        """Only this process: what an earlier one at this node held is lost."""
        return member == self.me

    def is_duplicate(self, worker: int, sequence: int) -> bool:
        """Whether the update has been committed before, or has its place in the log: each counts once."""
        return sequence <= self._ordered(worker)

    def is_next(self, worker: int, sequence: int) -> bool:
        """Whether the update may get a number now: a worker's updates keep their order."""
        return sequence == self._ordered(worker) + 1

    # --- for all roles

    def ordered(self, worker: int) -> int:
        """The last sequence of this worker that has a number; 0 where there is none."""
        return self._ordered(worker)

    def _is_applied(self) -> int:
        """Up to which entry the owner's state knows everything, so that the log may forget it."""
        return self.committed if self._applied is None else min(self._applied, self.committed)

    def _ordered(self, worker: int) -> int:
        """The last sequence of this worker that has a number."""
        return max(self.sessions.last(worker), self.log.latest(worker))

    def _role_in(self, configuration: Configuration) -> Role:
        if self.is_me(configuration.primary):
            return Role.PRIMARY
        if any(map(self.is_me, configuration.in_sync)):
            return Role.BACKUP
        return Role.LEARNER if any(map(self.is_me, configuration.learners)) else Role.OUTSIDE

    def _commit(self, number: int) -> list[Entry]:
        """All up to this number is committed: tell the owner to apply it."""
        entries = self.log.between(self.committed, number)
        for entry in entries:
            self.committed = entry.number
            self.sessions.committed(entry.worker, entry.sequence)
            pieces = () if entry.update is None else entry.update.body()
            self._events.append(Apply(entry.number, entry.worker, entry.sequence, pieces, entry.head))
        return entries

    def _hear_of(self, generation: int, now: float) -> None:
        """Somebody acts by a configuration of this generation, or says so: it is asked for until an answer tells what holds."""
        self._known = max(self._known, generation)
        if self._known > self.generation:
            self._fetch(now)

    def _fetch(self, now: float) -> None:
        """Ask for the committed configuration, unless it was asked for a moment ago."""
        if now >= self._fetch_due:
            self._fetch_due = now + self._timing.fetch_again_s
            self._events.append(FetchConfiguration())

    def _send(self, target: NodeId, message: Message, body: Body = b"") -> None:
        self._outbox.append((target, message, body))
