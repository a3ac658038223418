"""One shard of the parameter server: takes pushes, updates its parameters, answers with them. Pure: no socket, thread or clock.

    arrived     a part of a push lies in its slot
    pull        a worker wants values alone
    mark        a worker has drawn a mark, and has what it wants of that moment; served: so has the server
    wish        a worker wants batches to train, where this shard deals them out; rest: it has none; leave: it is gone
    work        decide one push, or one round of them; False while there is nothing to decide
    next_answer what to send now; answer_sent: it has left; next_leased: to wishes

A push runs through these states, and touches the parameters in the last but one of them: coming (a slot in `inbox`), whole,
judged (`guard`, age, generation), logged under a number (`roster`: a push that comes again is answered again, not applied again),
applied in blocks (`optimizers`), answered with fresh values in the same round trip (`answers`). Where pushes come in rounds
(`sync`, `local`), whole pushes wait in their slots for the round's others and are summed in the workers' order; a round is
over when all have come of whom it waits, which are not those that have drawn a mark before the others (`marks`).

What is decided goes through a log (`decisions`) into `state`, which is alike wherever the shard lives; here is what only the
process needs that workers speak to. Alone, an entry is applied as soon as it is decided; `replicated` has another log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from p2pnn.errors import CheckpointError
from p2pnn.job.spec import Optimizer
from p2pnn.ps.answers import Answers, Due
from p2pnn.ps.compression import Buffer, new
from p2pnn.ps.consistency import Settings
from p2pnn.ps.decisions import Close, Decision, Draw, Grant, Leave, Own, Rest, Return, Serve, Strike, Take
from p2pnn.ps.granting import Granting, Leased
from p2pnn.ps.guard import Guard
from p2pnn.ps.inbox import Inbox
from p2pnn.ps.layout import WINDOW, part_sizes
from p2pnn.ps.messages import BAD, Answer, Pull, Push, Refusal, Worker
from p2pnn.ps.report import Did, Phase, Report
from p2pnn.ps.roster import Member
from p2pnn.ps.sharding import ShardRange
from p2pnn.ps.space import Flat
from p2pnn.ps.staging import Slot, Staged
from p2pnn.ps.state import State
from p2pnn.ps.withheld import Withheld
from p2pnn.replication.leases import LeaseTable, Wish
from p2pnn.train.optimizers import Combine, combine


class Shard:
    """initial: float32[the shard's size], copied. optimizer: the job's (`local` takes `Settings.outer` here). steps: the updates
    that the run will make, for schedules that end. slot: where pushes lie (`layout.Slots`), by the worker's place in `workers`;
    window: how many slots it has. buffer: for what is sent from where it lies: versions, and compressed answers. did: see `Did`.
    leases: of the batches, where this shard deals them out.
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
        window: int = WINDOW,
        did: Did = lambda *_: None,
        leases: LeaseTable | None = None,
    ) -> None:
        self._settings, self._how = settings, settings.consistency
        self.state = State(
            shard,
            initial,
            optimizer,
            settings,
            workers,
            slot=slot,
            buffer=buffer,
            steps=steps,
            guard=guard,
            combine=combine,
            window=window,
            leases=leases,
        )
        self._roster, self._guard, self._marks = self.state.roster, self.state.guard, self.state.marks
        self._inbox = Inbox(part_sizes(shard, settings.push), self._roster, self.state.staging)
        self._answers = Answers(self.state.versions, settings.pull, lambda: self.state.clock, buffer)
        self.generation = generation
        self._withheld = Withheld(self.state, settings, self._answers)
        self._granting = Granting(self.state)
        self._zeros: Counter[Worker] = Counter()  # pushes in a row, to the newest, that were all zero
        self._did = did

    # the log: what another one than that of a single process overrides

    def _may_order(self, decision: Decision) -> bool:
        """Whether an entry would get its place now."""
        return self.state.can_apply(decision)

    def _order(self, decision: Decision, now: float, worker: Worker | None = None, sequence: int = 0) -> None:
        """Give an entry its place; it is applied when it is safe there."""
        self._apply(decision, worker, sequence, now)

    def _order_own(self, decision: Own, now: float) -> None:
        """The same, of what can be ordered at any time and does no harm twice."""
        self._order(decision, now)

    def _ordered(self, worker: Worker) -> int:
        """The last push of a worker that has its place in the log."""
        return self.state.taken(worker)

    def _is_all_applied(self) -> bool:
        """Whether the state is what all entries that have a place will make of it."""
        return True

    def _is_closing(self) -> bool:
        """Whether a round is ordered to be closed, and is not yet."""
        return False

    def _came(self, push: Push, now: float) -> None:
        """A part of a push that may come lies in its slot."""

    # what comes in

    def arrived(self, push: Push, now: float) -> None:
        """A part of a push lies in its slot, all of it; or nothing was received, because the part is known (`gate`)."""
        if push.worker in self.state.gone:
            return
        why = self._inbox.unwelcome(push, self.generation, self._guard.set_aside)
        if why is not None:
            self._turn_away(push, why, now)
            return
        self._draw(push.worker, push.mark, now, passed=True)
        if push.sequence <= self._roster[push.worker].sequence:
            self._repeated(push)
            return
        why = self._inbox.arrived(push)
        if why is not None:
            self._turn_away(push, why, now)
            return
        self._came(push, now)

    def _repeated(self, push: Push) -> None:
        """A push that is decided comes again: it is answered again, unless its answer is held back."""
        is_last = push.sequence == self._roster[push.worker].sequence and self._inbox.is_last(push)
        if is_last and push.worker not in self._withheld:
            self._decided(push.worker, push)
            self._withheld.release()

    def pull(self, pull: Pull, now: float) -> None:
        """A worker wants values alone, now or at a mark, which it draws with that."""
        worker = pull.worker
        if worker in self.state.gone:
            return
        if worker not in self._roster or pull.generation != self.generation:
            why = Refusal.STALE_GENERATION if worker in self._roster else Refusal.UNKNOWN
            self._answers.add(Due(worker, request=pull.request, refusal=why, fetch=False))
            return
        if pull.request < self._roster[worker].request:
            return  # it was overtaken by the one that counts now
        self._roster[worker].request = pull.request
        self._withheld.pulled(Due(worker, request=pull.request, have=pull.have, returns=pull.returns), pull.after)
        if pull.returns > self._roster[worker].returned:
            self._order_own(Return(self._roster.number(worker), pull.returns), now)
        if pull.after:
            self._draw(worker, pull.after, now, passed=False)
        self._withheld.release()

    def mark(self, worker: Worker, sequence: int, now: float) -> None:
        """The worker has drawn this mark, and needs no more values of before; what it pushes from now on is behind it."""
        self._draw(worker, sequence, now, passed=True)

    def rest(self, worker: Worker, pushes: int, now: float) -> None:
        """The worker has nothing to train after so many pushes, all of which are acknowledged: no bound waits for it
        until a pull says that it `returns`."""
        if worker in self._roster and self._roster[worker].rested < pushes:
            self._order_own(Rest(self._roster.number(worker), pushes), now)

    def wish(self, worker: Worker, wish: Wish, now: float) -> None:
        """The worker wants batches to train; `next_leased` answers when there are any, or are none."""
        self._granting.wish(worker, wish)

    def leave(self, worker: Worker, now: float) -> None:
        """The worker is gone, and never comes back: nobody waits for it, and others get what it had to train."""
        if worker in self._roster and worker not in self.state.gone:
            self._order_own(Leave(self._roster.number(worker)), now)

    def served(self, sequence: int, now: float = 0.0) -> None:
        """The server has done what it has to do at this mark, which all workers had drawn (`is_marked`)."""
        self._order_own(Serve(sequence), now)

    @property
    def served_to(self) -> int:
        """The mark of the last `served`, by whichever process was the primary then: what was to be done there is done."""
        return self._marks.server

    def is_marked(self, sequence: int) -> bool:
        """Whether all workers have drawn this mark, so that all pushes before it are in `arrays`, and none behind it."""
        return self._marks.marked >= sequence

    def acknowledged(self, worker: Worker) -> int:
        """The newest push of this worker that is decided; the slots of all up to it are the worker's again."""
        member = self._roster.get(worker)
        return member.sequence if member else 0

    def _draw(self, worker: Worker, mark: int, now: float, *, passed: bool) -> None:
        if self._marks.is_news(worker, mark, passed):
            self._order_own(Draw(self._roster.number(worker), mark, passed), now)

    # what is decided

    def work(self, now: float) -> bool:
        """Decide one push or close one round; False where nothing can be done until another fact comes in."""
        if self._is_closing():
            return False
        if (grant := self._granting.next()) is not None and self._may_order(grant):
            self._granting.ordered(grant)
            self._order(grant, now)
            return True
        if self._how.in_rounds and self._close_round(now):
            return True
        next_of = self._next_in_round if self._how.in_rounds else self._next
        staged = next((one for one in self._inbox.ready(next_of) if one.header.mark <= self._marks.open), None)
        return staged is not None and self._take(staged, now)

    def _next(self, worker: Worker) -> int:
        return self._ordered(worker) + 1

    def _next_in_round(self, worker: Worker) -> int:
        """Of a worker one push at a time: the next one is behind the round that the last one is in."""
        decided = self._roster[worker].sequence
        return decided + 1 if self._ordered(worker) == decided else -1

    def _take(self, staged: Staged, now: float) -> bool:
        """A whole push gets its place, with what its gradient is worth."""
        push = staged.header
        if not self._may_order(Take(push.based_on, push.based_clock)):
            return False
        self._inbox.take(staged)
        why = self._judge(push)
        self._did(Phase.JUDGED, push.worker, push.sequence, self.state.versions.number)
        self._order(Take(push.based_on, push.based_clock, why.name if why else ""), now, push.worker, push.sequence)
        return True

    def _judge(self, push: Push) -> Refusal | None:
        """Why not to take a whole push for what it holds, if so. What is too old is not looked at: it stays so."""
        age = self.state.age(push.worker, push.based_on, push.based_clock)
        if age is not None and (age is not Refusal.AHEAD or self._is_all_applied()):
            return None
        why, norm = self._guard.judge(self.state.gradient(push.worker, push.sequence))
        if why is None:
            self._zeros[push.worker] = 0 if norm else self._zeros[push.worker] + 1
        return why

    def _close_round(self, now: float) -> bool:
        """Order the update where enough pushes are in."""
        left, state = self.state.left, self.state
        active = [w for w in self._roster.workers if w not in left]
        full = self._how.quorum(len(self._roster.workers))
        wanted = min(full, sum(worker not in state.out for worker in active))
        if len(state.round) < wanted or not (state.round or state.out) or not self._may_order(Close()):
            return False
        self._order(Close(), now)
        return True

    def _apply(self, decision: Decision, worker: Worker | None, sequence: int, now: float) -> None:
        """An entry has its place for good. Its answers may leave."""
        state, out = self.state, len(self._guard.set_aside) + len(self.state.gone)
        version = state.versions.number
        if isinstance(decision, Take | Close):
            self._did(Phase.LOGGED, worker, sequence, version)
        found = state.apply(worker, sequence, decision, now)
        if state.versions.number > version:
            self._did(Phase.APPLIED, worker, sequence, version)
        for decided in found:
            number = state.roster[decided].sequence
            staged = self._inbox.get(decided, number)
            if staged is not None:
                self._inbox.close(staged)  # its worker hears of it by the answer, so its slot stays as it is
                self._decided(decided, staged.header)
        if isinstance(decision, Grant):
            self._granting.applied(decision)
        if len(self._guard.set_aside) + len(state.gone) > out:
            self._drop_those_out()
        self._withheld.release()

    def _drop_those_out(self) -> None:
        """What is here of workers that were set aside or are gone."""
        for worker in self._guard.set_aside | self.state.gone:
            self._inbox.drop(worker)
        for worker in self.state.gone:
            self._answers.drop(worker)
            self._granting.drop(worker)
            self._withheld.drop(worker)

    def _decided(self, worker: Worker, push: Push) -> None:
        """Answer a push that is decided, now or when nothing holds the answer back any more."""
        member = self._roster[worker]
        about = member.sequence, 0, member.refusal, member.log_number, push.fetch, push.have
        self._withheld.pushed(Due(worker, *about, lately=member.lately))

    # who is welcome, and who waits

    def _turn_away(self, push: Push, why: Refusal, now: float) -> None:
        """Refuse a push before it is whole: it is not logged, and the worker may send it again. Says so once per push."""
        if self._inbox.is_last(push) or why is Refusal.SHAPE:
            if why in BAD:
                self._order_own(Strike(self._roster.number(push.worker), why.name), now)
            elif why is Refusal.STALE_GENERATION:
                self._guard.refuse(push.worker, why, 0)
            member = self._roster.get(push.worker)
            if push.worker not in self._withheld:
                of = member or Member(push.worker)
                due = Due(push.worker, of.sequence, 0, why, of.log_number, fetch=False, lately=of.lately)
                self._answers.add(due)

    # answers, and what else goes out

    def next_answer(self, now: float) -> Answer | None:
        """Something to send. Its values are read now, from the newest version."""
        return self._answers.next(self.generation)

    def next_leased(self) -> Leased | None:
        """An answer to a wish, to be sent."""
        return self._granting.next_leased()

    @property
    def is_deserted(self) -> bool:
        """Whether it deals out data that nobody is left to train: all have said that they train nothing any more."""
        return self._granting.is_deserted

    def answer_sent(self, answer: Answer, now: float) -> None:
        """The answer has left, or its link is broken: its memory may change."""
        self._answers.sent(answer)

    def report(self) -> Report:
        state = self.state
        return Report(
            state.versions.number,
            self._roster.log_number,
            self._inbox.whole + len(state.round),
            replace(state.staleness, counts=dict(state.staleness.counts)),
            dict(self._guard.refused),
            frozenset(self._guard.set_aside),
            {member.worker: member.taken for member in self._roster.members},
            {worker: often for worker, often in self._zeros.items() if often},
            self._inbox.received_bytes,
            self._answers.sent_bytes,
        )

    @property
    def arrays(self) -> dict[str, Flat]:
        """Parameters and the optimizer's state, by slot, as they are now: to be copied before the next verb is called."""
        return self.state.arrays

    def resume(self, arrays: Mapping[str, Flat], version: int) -> None:
        """Go on from these `arrays`, after so many updates, with workers that have pushed nothing yet; in a shard that has done
        nothing yet either. Raises CheckpointError where they do not fit."""
        found, wanted = ({name: one.shape for name, one in these.items()} for these in (arrays, self.arrays))
        if found != wanted:
            raise CheckpointError(f"a checkpoint of the shard has {found}, but the job needs {wanted}")
        for slot, array in self.state.optimizer.state.items():
            np.copyto(array, arrays[slot])
        self.state.versions.load(arrays["parameters"], version)
