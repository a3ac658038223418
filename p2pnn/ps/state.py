"""What every replica of a shard has alike: parameters, the optimizer's arrays, and who has pushed what. Pure.

It changes by `apply` alone, entry by entry of the log (`decisions`), and everything in it follows from them: so replicas that
have applied the same entries are equal, to the bit where their arithmetic is. What waits, what is said and to whom, is the
primary's (`shard`). The bytes of pushes are read where they lie, in slots that all replicas have alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import Buffer, codec, new
from p2pnn.ps.consistency import Settings
from p2pnn.ps.decisions import Close, Decision, Draw, Grant, Leave, Rest, Return, Serve, Strike, Take
from p2pnn.ps.guard import Guard
from p2pnn.ps.histogram import Histogram
from p2pnn.ps.layout import WINDOW, part_sizes
from p2pnn.ps.marks import Marks
from p2pnn.ps.messages import Refusal, Worker
from p2pnn.ps.optimizers import ShardOptimizer
from p2pnn.ps.roster import Member, Roster
from p2pnn.ps.sharding import ShardRange
from p2pnn.ps.space import Flat
from p2pnn.ps.staging import Slot, Staging
from p2pnn.ps.summing import Summing
from p2pnn.ps.versions import Versions, buffers
from p2pnn.replication.leases import LeaseTable
from p2pnn.train.optimizers import Combine, combine


class State:
    """As of `shard.Shard`. round: worker → its push that is in the open round. out: whose push was refused in it. window: slots
    of a worker. written: how many entries were no pushes. gone: workers that are lost. leases: of the shard that deals out data.
    """

    def __init__(
        self,
        shard: ShardRange,
        initial: Flat,
        optimizer: Optimizer,
        settings: Settings,
        workers: Sequence[Worker],
        *,
        slot: Slot,
        buffer: Buffer = new,
        steps: int = 0,
        guard: Guard | None = None,
        combine: Combine = combine,
        window: int = WINDOW,
        leases: LeaseTable | None = None,
    ) -> None:
        how = settings.consistency
        self._shard, self._settings, self._how = shard, settings, how
        self.optimizer = ShardOptimizer(
            settings.outer if how.kind == "local" else optimizer, shard.size, shard.decay, steps=steps, combine=combine
        )
        self.versions = Versions(initial, buffers(how), buffer)
        self.roster = Roster(workers)
        self.marks = Marks(workers)
        self.guard = guard or Guard()
        self.staging = Staging(part_sizes(shard, settings.push), workers, slot, window)
        self.round: dict[Worker, int] = {}
        self.out: set[Worker] = set()
        self.gone: set[Worker] = set()
        self.leases = leases
        self.staleness = Histogram()
        self.written = 0
        self._codec = codec(settings.push)
        self._plain = settings.push == "float32"
        self._summing = Summing(shard.size if how.in_rounds else 0, len(workers))
        self._scratch = np.empty(0 if self._plain else shard.size, np.float32)
        self._decoded: tuple[Worker, int] | None = None

    @property
    def arrays(self) -> dict[str, Flat]:
        """Parameters and the optimizer's state, by slot, as they are now."""
        return {"parameters": self.versions.newest, **self.optimizer.state}

    def taken(self, worker: Worker) -> int:
        """The last push of a worker that has its place: it is decided, or in the open round."""
        member = self.roster.get(worker)
        return self.round.get(worker, member.sequence) if member is not None else 0

    def gradient(self, worker: Worker, sequence: int) -> Flat:
        """A push as float32[size]: where it lies, or in scratch until another one is asked for."""
        place = self.staging.place(worker, sequence)
        if self._plain:
            return place.view(np.float32)
        if self._decoded != (worker, sequence):
            for part in self._shard.parts:
                self._codec.decode(self.staging.part(place, part.index), self._scratch[part.start : part.stop])
            self._decoded = worker, sequence
        return self._scratch

    def age(self, worker: Worker, based_on: int, based_clock: int) -> Refusal | None:
        """Why not to take a push now for what it is based on, if so."""
        staleness = self.versions.number - based_on
        if worker in self.gone:
            return Refusal.UNKNOWN
        if worker in self.guard.set_aside:
            return Refusal.SET_ASIDE
        if staleness < 0 or worker in self.out:
            return Refusal.AHEAD
        if self._how.in_rounds and staleness:
            return Refusal.LATE
        if self._how.kind == "ssp" and self.roster[worker].clock - based_clock > self._how.bound:
            return Refusal.TOO_STALE
        return Refusal.TOO_STALE if 0 < self._settings.staleness_max < staleness else None

    def can_apply(self, decision: Decision) -> bool:
        """Whether there is a buffer for the version that it makes, if it makes one."""
        makes = isinstance(decision, Close) or (isinstance(decision, Take) and not self._how.in_rounds)
        return not makes or self.versions.next() is not None

    def apply(self, worker: Worker | None, sequence: int, decision: Decision, now: float) -> list[Worker]:
        """The next entry; `can_apply` said that it can be. worker, sequence: of a push. Returns whose push it has decided."""
        match decision:
            case Take():
                assert worker is not None, "a push has a worker"
                return self._take(worker, sequence, decision, now)
            case Close():
                decided = self._close(now)
            case Draw(number, mark, passed):
                decided = []
                drawing = self.roster.worker(number)
                if drawing is not None:
                    self._drawn(self.marks.passes(drawing, mark) if passed else self.marks.draw(drawing, mark))
            case Serve(mark):
                decided = []
                self.marks.served(mark)
            case Strike(number, refusal):
                decided = []
                struck = self.roster.worker(number)
                if struck is not None:
                    self._refuse(struck, Refusal[refusal])
            case Grant(number, wish):
                decided = []
                wishing = self.roster.worker(number)
                if self.leases is not None and wishing is not None and wishing not in self.gone:
                    self.leases.wish(number, wish, self.trainers)
                    if wish.quits:
                        self.leases.lost(number, self.roster[wishing].sequence, self._settings.n_push)
            case Rest(number, pushes):
                decided = []
                resting = self.roster.worker(number)
                if resting is not None:
                    self.roster[resting].rested = max(pushes, self.roster[resting].rested)
            case Return(number, next_one):
                decided = []
                returning = self.roster.worker(number)
                if returning is not None:
                    self._return(self.roster[returning], next_one)
            case Leave(number):
                decided = []
                leaving = self.roster.worker(number)
                if leaving is not None:
                    self._leave(leaving)
        self.written += 1
        return decided

    # pushes

    def _take(self, worker: Worker, sequence: int, take: Take, now: float) -> list[Worker]:
        why = self.age(worker, take.based_on, take.based_clock)
        if why is None and take.refusal:
            why = Refusal[take.refusal]
        if why is None:
            self.guard.took(worker)
            if self._how.in_rounds:
                self.round[worker] = sequence
                return []
        self._log(worker, sequence, why, now)
        if why is None:
            self._update(worker, sequence, self.versions.number - take.based_on)
        elif self._how.in_rounds and why is not Refusal.LATE and worker not in self.guard.set_aside:
            self.out.add(worker)
        return [worker]

    def _update(self, worker: Worker, sequence: int, staleness: int) -> None:
        """One push as an update of its own."""
        versions = self.versions
        target = versions.next()
        assert target is not None, "there is a buffer"
        self.staleness.add(staleness)
        rate = self.optimizer.rate(versions.number)
        if self._settings.scale_by_staleness:
            rate /= max(1, staleness)
        out = None if versions.live else versions.buffer(target)
        gradient = self.gradient(worker, sequence)
        self.optimizer.apply(versions.newest, gradient, update=versions.number, rate=rate, out=out)
        versions.publish(target)

    def _close(self, now: float) -> list[Worker]:
        """The update of a round: its gradients, summed in the order of workers."""
        versions, how = self.versions, self._how
        target = versions.next()
        assert target is not None, "there is a buffer"
        taken = [worker for worker in self.roster.workers if worker in self.round]
        for worker in taken:
            self._log(worker, self.round[worker], None, now)
            self.staleness.add(0)
        if taken:
            total = self._summing.sum((self.gradient(w, self.round[w]) for w in taken), kept=self._plain)
            full = how.quorum(len(self.roster.workers))
            scale = 1.0 / len(taken) if how.kind == "local" else full / len(taken)
            number, out = versions.number, versions.buffer(target)
            rate = self.optimizer.rate(number)
            self.optimizer.apply(versions.newest, total, update=number, rate=rate, scale=scale, out=out)
            versions.publish(target)
        else:
            versions.skip()
        self.round.clear()
        self.out.clear()
        return taken

    def _log(self, worker: Worker, sequence: int, why: Refusal | None, now: float) -> None:
        self.roster.log(worker, sequence, why, now)
        if why is not None:
            if self.leases is not None:
                self.leases.refused(self.roster.number(worker), sequence)
            self._refuse(worker, why)

    def _refuse(self, worker: Worker, why: Refusal) -> None:
        others = sum(other != worker for other in self.training)
        if self.guard.refuse(worker, why, others):
            self.round.pop(worker, None)
            self._drawn(self.marks.set_workers(self.training))

    def _return(self, member: Member, sequence: int) -> None:
        """It takes part again, as one that joins: what it missed is nothing to wait for. So the least clock never falls."""
        if member.is_resting:
            member.clock = max(member.clock, self.clock)
        member.returned = max(sequence, member.returned)

    def _leave(self, worker: Worker) -> None:
        """It takes no part any more. Its numbers and slots stay its own, since the others' depend on them."""
        self.gone.add(worker)
        self.round.pop(worker, None)
        self.out.discard(worker)
        if self.leases is not None:
            self.leases.lost(self.roster.number(worker), self.roster[worker].sequence, self._settings.n_push)
        self._drawn(self.marks.set_workers(self.training))

    # who takes part

    @property
    def left(self) -> set[Worker]:
        """Those for whom nobody waits now."""
        resting = {member.worker for member in self.roster.members if member.is_resting}
        return self.guard.set_aside | self.gone | self.marks.ahead | resting

    @property
    def training(self) -> list[Worker]:
        """Those that are neither gone nor set aside."""
        return [w for w in self.roster.workers if w not in self.gone and w not in self.guard.set_aside]

    @property
    def trainers(self) -> int:
        """How many are leased batches; of the shard that deals them out."""
        leases = self.leases
        return sum(leases is None or not leases.has_quit(self.roster.number(worker)) for worker in self.training)

    @property
    def clock(self) -> int:
        return self.roster.clock(self.left)

    def _drawn(self, by_all: bool) -> None:
        if by_all:
            self.roster.level()

    def forget_scratch(self) -> None:
        """What lies in the slots is other than before."""
        self._decoded = None
