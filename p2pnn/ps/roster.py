"""A shard's workers, in their order, and what it has logged of each: that is what makes a push count exactly once.

A push is *logged* when it has been decided, applied or refused; from then on its number is the worker's last one, and the same
push that comes again is answered again. It lasts as long as the start. A worker's clock is how many of its pushes are logged,
for one that joined later plus the least clock at that moment, so that nobody waits for it to catch up. At each mark of the
script that all have drawn, all clocks become those of the foremost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pnn.errors import LocalProtocolError
from p2pnn.ps.decided import with_fate
from p2pnn.ps.messages import Refusal, Worker


@dataclass(slots=True)
class Member:
    """sequence: the last logged push; refusal, log_number: what became of it. taken: how many were applied. heard: when the last
    was logged, −1 before. request: of its newest pull. rested: after how many pushes it had nothing to train; −1 before.
    returned: the push before which its last rest ended. lately: what became of its last pushes (`decided`).
    """

    worker: Worker
    sequence: int = 0
    refusal: Refusal | None = None
    log_number: int = 0
    clock: int = 0
    taken: int = 0
    heard: float = -1.0
    request: int = 0
    rested: int = -1
    returned: int = 0
    lately: int = 0

    @property
    def is_resting(self) -> bool:
        """Whether that was after its last push, and it has not said that it has something again."""
        return self.rested == self.sequence >= self.returned


class Roster:
    """workers: in the order in which gradients are summed. came: how many ever did; each has a number, from 1."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers: tuple[Worker, ...] = ()
        self._members: dict[Worker, Member] = {}
        self._left: dict[str, int] = {}  # node → the newest of its lives that has left
        self._numbers: dict[Worker, int] = {}
        self._by_number: dict[int, Worker] = {}
        self.came = 0
        self.log_number = 0
        self.set(workers)

    def __contains__(self, worker: Worker) -> bool:
        return worker in self._members

    def __getitem__(self, worker: Worker) -> Member:
        return self._members[worker]

    def get(self, worker: Worker) -> Member | None:
        return self._members.get(worker)

    def number(self, worker: Worker) -> int:
        """Of a life of a worker that takes part; no other one ever has it."""
        return self._numbers[worker]

    def worker(self, number: int) -> Worker | None:
        """Who takes part under this number."""
        return self._by_number.get(number)

    @property
    def members(self) -> list[Member]:
        return [self._members[worker] for worker in self.workers]

    def clock(self, without: Iterable[Worker] = ()) -> int:
        """The least clock of all workers but those; of all, where nobody else is left."""
        left = set(without)
        return min(
            (m.clock for m in self._members.values() if m.worker not in left),
            default=max((m.clock for m in self._members.values()), default=0),
        )

    def level(self) -> None:
        """All have drawn a mark: who had fewer pushes before it is not behind for that."""
        clock = max((m.clock for m in self._members.values()), default=0)
        for member in self._members.values():
            member.clock = clock

    def log(self, worker: Worker, sequence: int, refusal: Refusal | None, now: float) -> Member:
        """Decide a push, which is the worker's next."""
        member = self._members[worker]
        assert sequence == member.sequence + 1, "pushes are logged without a gap"
        self.log_number += 1
        member.sequence, member.refusal, member.log_number, member.heard = sequence, refusal, self.log_number, now
        member.clock += 1
        member.taken += refusal is None
        member.lately = with_fate(member.lately, refusal)
        return member

    def set(self, workers: Sequence[Worker]) -> list[Worker]:
        """Take these workers, in this order. Returns those that have left.

        Raises LocalProtocolError where one is given twice, or has left before: what it pushed is forgotten, so it has to come
        back as a new incarnation.
        """
        returning = [w for w in workers if w not in self and w.incarnation <= self._left.get(w.node, -1)]
        if returning or len(set(workers)) < len(workers):
            named = f"the worker {returning[0]} has left" if returning else "a worker is named twice"
            raise LocalProtocolError(f"{named}; a process that comes again is a new incarnation")
        start = self.clock()
        gone = [worker for worker in self.workers if worker not in set(workers)]
        for worker in gone:
            del self._members[worker], self._by_number[self._numbers.pop(worker)]
            self._left[worker.node] = max(worker.incarnation, self._left.get(worker.node, -1))
        for worker in workers:
            if worker not in self:
                self.came += 1
                self._members[worker] = Member(worker, clock=start)
                self._numbers[worker], self._by_number[self.came] = self.came, worker
        self.workers = tuple(workers)
        return gone

    def load(
        self,
        members: Sequence[Member],
        log_number: int,
        left: dict[str, int],
        numbers: Sequence[int] = (),
        came: int = 0,
    ) -> None:
        """Go on from what was saved. numbers: of the members, where they had any; came: how many ever did."""
        self._members = {member.worker: member for member in members}
        self.workers = tuple(member.worker for member in members)
        self._by_number = dict(zip(numbers or range(1, len(members) + 1), self.workers, strict=True))
        self._numbers = {worker: number for number, worker in self._by_number.items()}
        self.came = came or len(members)
        self._left, self.log_number = dict(left), log_number

    @property
    def left(self) -> dict[str, int]:
        return dict(self._left)
