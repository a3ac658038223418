"""A backup's and a learner's part: hold what the primary sends, say how far, apply what is committed.

`held` is what this replica has of the primary's log in this generation. In a new generation it begins at what is committed
here, since only that is sure to be the same in all logs; the primary names the entries behind it again, and the bytes of those
that are here already do not travel again. An entry of the same number that another generation ordered was never
acknowledged (all in-sync replicas would have it): it is dropped, with all behind it.
"""

from __future__ import annotations

from p2pnn.replication.configuration import Member
from p2pnn.replication.holding import Holding, Role, Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import Entry, Sequences
from p2pnn.replication.outcomes import LoadState
from p2pnn.replication.staging import Body, Update
from p2pnn.replication.transfer import Assembly
from p2pnn.types import NodeId
from p2pnn.wire.messages import Append, Appended, Beat, Forward, StateHeld, StatePiece, UpdateWanted

WANTED_MAX = 4
"""Updates whose bytes are asked for at once."""


class Following(Holding):
    def __init__(
        self,
        shard: Shard,
        me: Member,
        now: float,
        limits: Limits,
        timing: Timing,
        sessions: Sequences | None = None,
    ) -> None:
        super().__init__(shard, me, now, limits, timing, sessions)
        self._held = 0
        self._named = 0
        self._told = self._told_stable = 0  # what the primary has said is committed, and known to be so
        self._aligned = False
        self._heard = now
        self._wanted_at: float | None = None
        self._assembly = Assembly(limits.state_bytes_max)

    # --- the rules

    def obeys(self, source: NodeId, generation: int, now: float) -> bool:
        """Only the primary of this generation, and only a backup or learner of it."""
        if not self.is_current(source, generation, now):
            return False
        assert self.configuration is not None
        return self.role in (Role.BACKUP, Role.LEARNER) and source == self.configuration.primary.id

    def is_held(self, entry: Entry) -> bool:
        """Whether the entry may be acknowledged: with all its bytes."""
        return entry.is_complete

    def is_same(self, entry: Entry, message: Append) -> bool:
        """Whether what is here under this number is what the primary has there."""
        return entry.ordered == message.ordered

    def may_apply(self, committed: int) -> int:
        """Up to which number to apply, when so many entries are committed: what is applied cannot be undone."""
        return min(committed, self._held)

    # --- inside

    def _follow(self, now: float) -> None:
        """A new generation with another primary, or the same one, has begun."""
        self._held = self._named = self.committed
        self._told = self._told_stable = 0
        self._aligned = False
        self._heard = now
        self._wanted_at = None

    def _receive_forward(self, source: NodeId, message: Forward, body: Body, now: float) -> None:
        if not self.obeys(source, message.generation, now):
            return
        self._heard = now
        key = (message.worker, message.sequence)
        if self._staging.get(key) is None and self.is_duplicate(*key):
            return
        update = self._staging.open(key, message.total_bytes, now)
        if update is not None and update.add(message.start, body, now, self._limits.pieces_max):
            self._completed(update)

    def _completed(self, update: Update) -> None:
        """Perhaps: then more is held, if it has its number."""
        if update.is_complete and update.claimed:
            self._staging.remove(update.key)
            self._advance_held()
            self._commit_held()
            self._tell_held()

    def _receive_append(self, source: NodeId, message: Append, now: float) -> None:
        if not self.obeys(source, message.generation, now):
            return
        self._heard = now
        self._align(message.base)
        if message.number == self._named + 1:
            self._take(message, now)
        self._advance_held()
        self._commit_held(message.committed, message.stable)
        self._tell_held()

    def _take(self, message: Append, now: float) -> None:
        """The next entry: it is here already, or takes the place of another."""
        entry = self.log.get(message.number)
        if entry is not None and not self.is_same(entry, message):
            self._drop_after(message.number - 1)
            entry = None
        if entry is None and message.number == self.log.last + 1:
            key = (message.worker, message.sequence)
            update = self._staging.claim(key, message.total_bytes, now) if message.total_bytes else None
            if update is None:
                self._staging.remove(key)
            entry = Entry(message.number, message.ordered, *key, update, now, head=message.head)
            self.log.append(entry)
        if entry is None:
            return
        self._named = message.number
        if entry.update is not None and not entry.is_complete:
            if entry.ordered < self.generation and not entry.update.held_bytes:  # nobody is sending it now
                self._want(entry)
            self._wanted_at = self._wanted_at or now + self._timing.resend_s

    def _receive_beat(self, source: NodeId, message: Beat, now: float) -> None:
        if not self.obeys(source, message.generation, now):
            return
        self._heard = now
        self._align(message.base)
        self._commit_held(message.committed, message.stable)
        self._tell_held()

    def _align(self, base: int) -> None:
        """Once a generation: what lies behind the primary's log was never acknowledged."""
        if not self._aligned:
            self._aligned = True
            self._drop_after(max(base, self.committed))

    def _drop_after(self, number: int) -> None:
        for entry in self.log.truncate(max(number, self.committed)):
            self._staging.remove((entry.worker, entry.sequence))

    def _advance_held(self) -> None:
        while self._held < self._named:
            entry = self.log.get(self._held + 1)
            if entry is None or not self.is_held(entry):
                break
            self._held += 1

    def _commit_held(self, committed: int = 0, stable: int = 0) -> None:
        self._told, self._told_stable = max(self._told, committed), max(self._told_stable, stable)
        self._commit(self.may_apply(self._told))
        known = min(self._told_stable, self._is_applied())
        self.log.trim(known, self._limits.retained_entries, self._limits.retained_bytes)

    def _tell_held(self) -> None:
        assert self.configuration is not None
        told = Appended(*self.shard, self.generation, self.me.incarnation, self._held, self.committed)
        self._send(self.configuration.primary.id, told)

    # --- bytes that are missing

    def _want(self, entry: Entry) -> None:
        assert self.configuration is not None
        self._send(self.configuration.primary.id, UpdateWanted(*self.shard, self.generation, entry.number))

    def _want_again(self, now: float) -> None:
        """Timer: what has a number and still lacks bytes was lost on its way."""
        missing = [entry for entry in self.log.between(self._held, self._named) if not entry.is_complete]
        dues = []
        for entry in missing[:WANTED_MAX]:
            if entry.update is None:
                continue
            due = entry.update.touched + self._lost_after_s(entry.update)
            if now >= due:
                self._want(entry)
                due = now + self._lost_after_s(entry.update)
            dues.append(due)
        self._wanted_at = min(dues, default=None)

    def _lost_after_s(self, update: Update) -> float:
        """Until bytes that do not come are asked for; a learner, for whom nobody waits, allows for a slow link."""
        missing = update.total_bytes - update.held_bytes if self.role is Role.LEARNER else 0
        return self._timing.resend_s + missing / self._timing.slow_bytes_per_s

    # --- a whole state

    def _receive_state_piece(self, source: NodeId, message: StatePiece, body: Body, now: float) -> None:
        if not self.obeys(source, message.generation, now):
            return
        self._heard = now
        held_bytes = message.total_bytes
        if message.number <= self._held:  # it came late: what is said to be held is never given up for it
            self._tell_held()
        elif self.role is Role.LEARNER:
            held_bytes = self._assembly.add(source, message, body)
            if held_bytes == message.total_bytes:
                self._load(message.number)
        self._send(source, StateHeld(*self.shard, self.generation, message.number, held_bytes))

    def _load(self, number: int) -> None:
        """The state is whole: go on from there."""
        head, pieces = self._assembly.take()
        self.sessions.load(head)
        self.committed = self._held = self._named = number
        self._applied = None if self._applied is None else number
        self.log.reset(number)
        self._staging.clear()
        self._wanted_at = None
        self._events.append(LoadState(number, pieces))
        self._tell_held()
