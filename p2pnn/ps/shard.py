"""One shard of the parameter server: takes pushes, updates its parameters, answers with them. Pure: no socket, thread or clock.

    arrived     a part of a push lies in its slot
    pull        a worker wants values alone
    mark        a worker has drawn a mark, and has what it wants of that moment; served: so has the server
    work        decide one push, or one round of them; False while there is nothing to decide
    next_answer what to send now; answer_sent: it has left
    set_workers who takes part

A push runs through these states, and touches the parameters in the last but one of them: coming (a slot in `inbox`), whole,
judged (`guard`, age, generation), logged under a number (`roster`: a push that comes again is answered again, not applied again),
applied in blocks (`optimizers`), answered with fresh values in the same round trip (`answers`). Where pushes come in rounds
(`sync`, `local`), whole pushes wait in their slots for the round's others and are summed in the workers' order; a round is
over when all have come of whom it waits, which are not those that have drawn a mark before the others (`marks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from p2pnn.errors import LocalProtocolError
from p2pnn.job.spec import Optimizer
from p2pnn.ps.answers import Answers, Due
from p2pnn.ps.compression import Buffer, codec, new
from p2pnn.ps.consistency import Settings
from p2pnn.ps.guard import Guard
from p2pnn.ps.histogram import Histogram
from p2pnn.ps.inbox import Inbox
from p2pnn.ps.layout import part_sizes
from p2pnn.ps.marks import Marks
from p2pnn.ps.messages import Answer, Pull, Push, Refusal, Worker
from p2pnn.ps.optimizers import ShardOptimizer
from p2pnn.ps.report import Phase, Report
from p2pnn.ps.roster import Roster
from p2pnn.ps.saving import Saved, check_fit
from p2pnn.ps.sharding import ShardRange
from p2pnn.ps.space import Flat
from p2pnn.ps.staging import Slot, Staged
from p2pnn.ps.summing import Summing
from p2pnn.ps.versions import Versions, buffers
from p2pnn.train.optimizers import Combine, combine


class Shard:
    """initial: float32[the shard's size], copied. optimizer: the job's (`local` takes `Settings.outer` here). steps: the updates
    that the run will make, for schedules that end. slot: where pushes lie (`layout.Slots`), by the worker's place in `workers`.
    buffer: for what is sent from where it lies: versions, and compressed answers. did: is told each phase of `work` when it is
    over, of which push (None: of a round), and which version it began with.
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
        generation: int = 0,
        steps: int = 0,
        guard: Guard | None = None,
        combine: Combine = combine,
        did: Callable[[Phase, Push | None, int], None] = lambda *_: None,
    ) -> None:
        how = settings.consistency
        self._shard, self._settings, self._how = shard, settings, how
        self._optimizer = ShardOptimizer(
            settings.outer if how.kind == "local" else optimizer, shard.size, shard.decay, steps=steps, combine=combine
        )
        self._versions = Versions(initial, buffers(how), buffer)
        self._codec = codec(settings.push)
        self._plain = settings.push == "float32"
        self._summing = Summing(shard.size if how.in_rounds else 0, len(workers))
        self._scratch = np.empty(0 if self._plain else shard.size, np.float32)
        self._roster = Roster(workers)
        self._marks = Marks(workers)
        self._inbox = Inbox(part_sizes(shard, settings.push), self._roster, slot)
        self._guard = guard or Guard()
        self._did = did
        self._answers = Answers(self._versions, settings.pull, self._clock, buffer)
        self.generation = generation
        self._round: dict[Worker, Staged] = {}
        self._out_of_round: dict[Worker, Due] = {}  # refused in this round; answered when it is over
        self._held: dict[Worker, Due] = {}  # answers that a bound (ssp) or the warm start holds back
        self._awaiting: dict[Worker, tuple[Due, int]] = {}  # pulls, and the mark at which they are answered
        self._staleness = Histogram()

    # what comes in

    def arrived(self, push: Push, now: float) -> None:
        """A part of a push lies in its slot, all of it; or nothing was received, because the part is known (`gate`)."""
        why = self._inbox.unwelcome(push, self.generation, self._guard.set_aside)
        if why is not None:
            self._turn_away(push, why)
            return
        self._drawn(self._marks.passes(push.worker, push.mark))
        member = self._roster[push.worker]
        if push.sequence <= member.sequence:
            if push.sequence == member.sequence and self._inbox.is_last(push) and not self._is_held(push.worker):
                again = Due(push.worker, push.sequence, 0, member.refusal, member.log_number, push.fetch, push.have)
                self._answers.add(again)
            return
        why = self._inbox.arrived(push)
        if why is not None:
            self._turn_away(push, why)

    def pull(self, pull: Pull, now: float) -> None:
        """A worker wants values alone, now or at a mark, which it draws with that."""
        worker = pull.worker
        if worker not in self._roster or pull.generation != self.generation:
            why = Refusal.STALE_GENERATION if worker in self._roster else Refusal.UNKNOWN
            self._answers.add(Due(worker, request=pull.request, refusal=why, fetch=False))
            return
        if pull.request < self._roster[worker].request:
            return  # it was overtaken by the one that counts now
        self._roster[worker].request = pull.request
        if worker in self._held and self._held[worker].request:
            del self._held[worker]
        due = Due(worker, request=pull.request, have=pull.have)
        if pull.after:
            self._awaiting[worker] = due, pull.after
            self._drawn(self._marks.draw(worker, pull.after))
        elif self._is_cold(worker):
            self._held[worker] = due
        else:
            self._answers.add(due)

    def mark(self, worker: Worker, sequence: int, now: float) -> None:
        """The worker has drawn this mark and has all that it wants of that moment: what it sends from now on is behind it."""
        self._drawn(self._marks.passes(worker, sequence))

    def served(self, sequence: int) -> None:
        """The server has done what it has to do at this mark, which all workers had drawn (`is_marked`)."""
        self._marks.served(sequence)

    def is_marked(self, sequence: int) -> bool:
        """Whether all workers have drawn this mark, so that all pushes before it are in `arrays`, and none behind it."""
        return self._marks.marked >= sequence

    def acknowledged(self, worker: Worker) -> int:
        """The newest push of this worker that is decided; the slots of all up to it are the worker's again."""
        member = self._roster.get(worker)
        return member.sequence if member else 0

    def _drawn(self, by_all: bool) -> None:
        if by_all:
            self._roster.level()
        for worker, (due, after) in list(self._awaiting.items()):
            if self.is_marked(after):
                del self._awaiting[worker]
                self._answers.add(due)
        self._release()

    # what is decided

    def work(self, now: float) -> bool:
        """Decide one push or close one round; False where nothing can be done until another fact comes in."""
        if self._how.in_rounds and self._close_round(now):
            return True
        staged = next((one for one in self._inbox.ready() if one.header.mark <= self._marks.open), None)
        if staged is None:
            return False
        if self._how.in_rounds:
            self._enter_round(staged, now)
            return True
        return self._apply(staged, now)

    def _apply(self, staged: Staged, now: float) -> bool:
        """One push as an update of its own."""
        push, versions = staged.header, self._versions
        target = versions.next()
        if target is None:
            return False
        gradient = self._decode(staged)
        staleness = versions.number - push.based_on
        why = self._judge(push, gradient, staleness)
        self._inbox.close(staged)  # its worker hears of it by the answer, so its slot stays as it is
        self._did(Phase.JUDGED, push, versions.number)
        due = self._log(push, why, now)
        self._did(Phase.LOGGED, push, versions.number)
        if why is None:
            self._staleness.add(staleness)
            rate = self._optimizer.rate(versions.number)
            if self._settings.scale_by_staleness:
                rate /= max(1, staleness)
            out = None if versions.live else versions.buffer(target)
            self._optimizer.apply(versions.newest, gradient, update=versions.number, rate=rate, out=out)
            versions.publish(target)
            self._did(Phase.APPLIED, push, versions.number - 1)
        if self._how.kind == "ssp" and push.worker not in self._guard.set_aside:
            self._held[push.worker] = due
        else:
            self._answers.add(due)
        self._release()
        return True

    def _enter_round(self, staged: Staged, now: float) -> None:
        """A whole push joins the round that it was made for, or is refused."""
        push = staged.header
        self._inbox.take(staged)
        why = self._judge(push, self._decode(staged), self._versions.number - push.based_on)
        self._did(Phase.JUDGED, push, self._versions.number)
        if why is None:
            self._round[push.worker] = staged
            return
        self._inbox.close(staged)
        due = self._log(push, why, now)
        if why is Refusal.LATE or push.worker in self._guard.set_aside:
            self._answers.add(due)
        else:
            self._out_of_round[push.worker] = due

    def _close_round(self, now: float) -> bool:
        """Make the update where enough pushes are in, summed in the order of workers."""
        left = self._guard.set_aside | self._marks.ahead
        active = [w for w in self._roster.workers if w not in left]
        full = self._how.quorum(len(self._roster.workers))
        wanted = min(full, sum(worker not in self._out_of_round for worker in active))
        if len(self._round) < wanted or not (self._round or self._out_of_round):
            return False
        target = self._versions.next()
        if target is None:
            return False
        taken = [self._round[worker] for worker in self._roster.workers if worker in self._round]
        for staged in taken:
            self._inbox.close(staged)
        answers = [self._log(staged.header, None, now) for staged in taken]
        self._did(Phase.LOGGED, None, self._versions.number)
        if taken:
            total = self._summing.sum((self._decode(staged) for staged in taken), kept=self._plain)
            scale = 1.0 / len(taken) if self._how.kind == "local" else full / len(taken)
            number, newest = self._versions.number, self._versions.newest
            rate, out = self._optimizer.rate(number), self._versions.buffer(target)
            self._optimizer.apply(newest, total, update=number, rate=rate, scale=scale, out=out)
            self._versions.publish(target)
            self._did(Phase.APPLIED, None, number)
        else:
            self._versions.skip()
        self._round.clear()
        for due in answers:
            self._staleness.add(0)
            self._answers.add(due)
        self._answer_refused()
        return True

    def _judge(self, push: Push, gradient: Flat, staleness: int) -> Refusal | None:
        """Why not to take a whole push, if so; by what it is based on, then by what it holds."""
        if staleness < 0 or push.worker in self._out_of_round:
            return Refusal.AHEAD
        if self._how.in_rounds and staleness:
            return Refusal.LATE
        if self._how.kind == "ssp" and self._roster[push.worker].clock - push.based_clock > self._how.bound:
            return Refusal.TOO_STALE
        if 0 < self._settings.staleness_max < staleness:
            return Refusal.TOO_STALE
        why, norm = self._guard.judge(gradient)
        if why is None:
            self._guard.took(push.worker, norm)
        return why

    def _log(self, push: Push, why: Refusal | None, now: float) -> Due:
        member = self._roster.log(push.worker, push.sequence, why, now)
        if why is not None:
            self._refuse(push.worker, why)
        return Due(push.worker, push.sequence, 0, why, member.log_number, push.fetch, push.have)

    def _refuse(self, worker: Worker, why: Refusal) -> None:
        others = sum(w != worker and w not in self._guard.set_aside for w in self._roster.workers)
        if worker in self._roster and self._guard.refuse(worker, why, others):
            self._drop_staged(worker)
            self._drawn(self._marks.set_workers(w for w in self._roster.workers if w not in self._guard.set_aside))

    # who is welcome, and who waits

    def _turn_away(self, push: Push, why: Refusal) -> None:
        """Refuse a push before it is whole: it is not logged, and the worker may send it again. Says so once per push."""
        if self._inbox.is_last(push) or why is Refusal.SHAPE:
            if why in (Refusal.SHAPE, Refusal.STALE_GENERATION):
                self._refuse(push.worker, why)
            member = self._roster.get(push.worker)
            if not self._is_held(push.worker):
                sequence, log_number = (member.sequence, member.log_number) if member else (0, 0)
                self._answers.add(Due(push.worker, sequence, 0, why, log_number, fetch=False))

    def _is_held(self, worker: Worker) -> bool:
        """Whether the answer to its last push is yet to come, and will."""
        return worker in self._held or worker in self._out_of_round

    def _is_cold(self, worker: Worker) -> bool:
        """Whether the first worker is still to train alone."""
        first = self._roster.workers[0]
        alone = worker != first and first not in self._marks.ahead
        return alone and self._versions.number < self._settings.warm_start

    def _clock(self) -> int:
        return self._roster.clock(self._guard.set_aside | self._marks.ahead)

    def _release(self) -> None:
        """Answer those whom no bound holds back any more."""
        clock = self._clock()
        for worker in list(self._held):
            ahead = self._how.kind == "ssp" and self._roster[worker].clock - clock > self._how.bound
            if worker in self._guard.set_aside or not (ahead or self._is_cold(worker)):
                self._answers.add(self._held.pop(worker))

    def _answer_refused(self) -> None:
        for due in self._out_of_round.values():
            self._answers.add(due)
        self._out_of_round.clear()

    def set_workers(self, generation: int, workers: Sequence[Worker], now: float) -> None:
        """From now on these take part, in this order; pushes that were not logged are dropped where the generation is new, and
        are sent again by their workers. Raises LocalProtocolError for a generation that is older, or in rounds the same."""
        if generation < self.generation or (self._how.in_rounds and generation == self.generation):
            raise LocalProtocolError(f"generation {generation} of the workers does not come after {self.generation}")
        gone = self._roster.set(workers)
        for worker in gone if generation == self.generation else self._inbox.workers:
            self._drop_staged(worker)
        for worker in gone:
            self._guard.forget(worker)
            self._answers.drop(worker)
            for held in (self._held, self._out_of_round):
                held.pop(worker, None)
            self._awaiting.pop(worker, None)
        self._inbox.set_workers()
        self._summing.grow(len(workers))
        self.generation = generation
        self._answer_refused()
        if workers:
            self._drawn(self._marks.set_workers(w for w in workers if w not in self._guard.set_aside))

    def _drop_staged(self, worker: Worker) -> None:
        self._inbox.drop(worker)
        self._round.pop(worker, None)

    def _decode(self, staged: Staged) -> Flat:
        """The push as float32[size]: where it lies, or in scratch."""
        if self._plain:
            return staged.place.view(np.float32)
        values = self._scratch
        for part in self._shard.parts:
            self._codec.decode(self._inbox.part(staged, part.index), values[part.start : part.stop])
        return values

    # answers, and what else goes out

    def next_answer(self, now: float) -> Answer | None:
        """Something to send. Its values are read now, from the newest version."""
        return self._answers.next(self.generation)

    def answer_sent(self, answer: Answer, now: float) -> None:
        """The answer has left, or its link is broken: its memory may change."""
        self._answers.sent(answer)

    def report(self) -> Report:
        return Report(
            self._versions.number,
            self._roster.log_number,
            self._inbox.whole + len(self._round),
            replace(self._staleness, counts=dict(self._staleness.counts)),
            dict(self._guard.refused),
            frozenset(self._guard.set_aside),
            {member.worker: member.taken for member in self._roster.members},
            dict(self._guard.zeros),
            self._inbox.received_bytes,
            self._answers.sent_bytes,
        )

    @property
    def arrays(self) -> dict[str, Flat]:
        """Parameters and the optimizer's state, by slot, as they are now: to be copied before the next verb is called."""
        return {"parameters": self._versions.newest, **self._optimizer.state}

    def save(self) -> Saved:
        """A checkpoint, cut between two updates: copies of everything that decides how the shard goes on."""
        copies = {name: array.copy() for name, array in self.arrays.items()}
        return Saved.of(copies, self._versions.number, self._roster)

    def load(self, saved: Saved) -> None:
        """Go on from a checkpoint, in a shard that has done nothing yet. Raises CheckpointError where it does not fit."""
        self.resume(saved.arrays, saved.version)
        self._roster.load(saved.members(), saved.log_number, dict(saved.left))

    def resume(self, arrays: Mapping[str, Flat], version: int) -> None:
        """Go on from these `arrays`, after so many updates, with workers that have pushed nothing yet; in a shard that has done
        nothing yet either. Raises CheckpointError where they do not fit."""
        check_fit(arrays, self.arrays)
        for slot, array in self._optimizer.state.items():
            np.copyto(array, arrays[slot])
        self._versions.load(arrays["parameters"], version)
