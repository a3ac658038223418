"""What a primary knows of the other replicas in its generation. It begins empty with each generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.replication.configuration import Member
from p2pnn.replication.log import Log
from p2pnn.replication.staging import Key
from p2pnn.replication.transfer import Outgoing


@dataclass(slots=True)
class Peer:
    """held: up to there it has the log; None until it has said so. next: the number of the entry that it is told of next.

    committed: up to there it knows that all is committed. lacks: it needs bytes that are gone. skipped: updates that were not
    forwarded to it while they came. since: when the generation began. late_at: when it last kept an
    entry waiting for too long.
    """

    member: Member
    since: float
    heard: float
    held: int | None = None
    next: int = 0
    committed: int = 0
    sent_at: float = 0.0
    late_at: float = 0.0
    lacks: bool = False
    skipped: set[Key] = field(default_factory=set)
    transfer: Outgoing | None = None

    def acknowledged(self, held: int, committed: int, now: float) -> None:
        """It has the log up to `held`."""
        if self.held is None:
            self.held, self.next = held, held + 1
        elif held > self.held:
            self.held, self.next = held, max(self.next, held + 1)
            self.sent_at = now
        self.committed = max(self.committed, committed)

    def holds(self, number: int) -> bool:
        return self.held is not None and self.held >= number

    def needs_state(self, log: Log) -> bool:
        """Whether entries that it lacks, or their bytes, are not in the log any more."""
        return self.held is not None and (self.lacks or self.held < log.floor)

    def waits_s(self, log: Log, now: float) -> float:
        """For how long the first entry that it does not hold has been waiting for it."""
        if self.holds(log.last):
            return 0.0
        entry = log.get((self.held or 0) + 1) if self.held is not None else None
        return now - max(self.since, self.since if entry is None else entry.since)
