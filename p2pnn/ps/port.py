"""One worker's side of one shard: pushes on their way out until they are acknowledged, and the newest values that came back.

A push has a body of its own from a small pool, so what is sent again is what was sent. Its parts become ready one by one, and
leave in the order of who needs them first; a later push leaves after all parts of the one before. Headers are made when a part
leaves, so a push that is sent again carries the generation of that moment.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from itertools import accumulate

import numpy as np

from p2pnn.ps.compression import Buffer, Bytes, Feedback, Mirror, codec, new
from p2pnn.ps.consistency import Settings
from p2pnn.ps.decided import TAKEN, fate_of
from p2pnn.ps.layout import WINDOW, part_sizes
from p2pnn.ps.messages import Answer, Pull, Push, Refusal, Values, Worker
from p2pnn.ps.outgoing import BACKOFF, RETRIES_BACKOFF_MAX, SOON_BACKOFF_MAX, SOON_S, Outgoing, PullRequest, PushPart
from p2pnn.ps.sharding import ShardRange
from p2pnn.ps.space import Flat


class Port:
    """At most `layout.WINDOW` pushes are unacknowledged at once. values: the newest that the shard has sent, float32[its size].

    version, clock: of `values`; fresh: they were not taken by `take` yet. mark: the worker's newest. refusals: what pushes were
    answered with. buffer: for the bodies of pushes.
    """

    def __init__(
        self,
        worker: Worker,
        shard: ShardRange,
        settings: Settings,
        generation: int,
        *,
        retry_s: float,
        buffer: Buffer = new,
    ) -> None:
        self.shard = shard
        self.refusals: Counter[Refusal] = Counter()
        self.generation = generation
        self.mark = 0
        self._worker = worker
        self._retry_s = retry_s
        self._takes_any = not settings.consistency.waits
        # What is pushed as it is, right after the step that made it, is written where it is sent from.
        self._plain = settings.push == "float32" and settings.consistency.kind != "local"
        self._straight = False
        self._codec = codec(settings.push)
        sizes = part_sizes(shard, settings.push)
        self._runs = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        # What rounding loses is owed to the shard's next push.
        self._feedback = [Feedback(self._codec, p.size) if settings.push != "float32" else None for p in shard.parts]
        self._bodies = [buffer(sum(sizes)) for _ in range(WINDOW)]
        self._outgoing: deque[Outgoing] = deque()
        self._fates: dict[int, int] = {}  # of pushes that were not taken
        self._acknowledged: list[Outgoing] = []  # their bodies are still being sent
        self._sequence = 0
        self.accrued = np.zeros(shard.size, np.float32)
        self.accrued_steps = 0
        self._based = (0, 0)
        pull = codec(settings.pull)
        self._mirror = Mirror(pull, shard.size)
        self._differences = settings.pull != "float32"
        self._delta = np.empty(pull.byte_count(shard.size) if self._differences else 0, np.uint8)
        self.version, self.clock, self.fresh = -1, 0, False
        self._installed = (0, 0)
        self._request, self._asking, self._asked, self._after, self._returns = 0, False, False, 0, 0
        self._pull_retry_at: float | None = None
        self._pull_tries = 0
        self._wanted_with = 0  # the push whose answer brings values; 0 where none does
        self._floor = -1
        self._receiving = False
        self.stale = False
        self.ended: Refusal | None = None

    @property
    def values(self) -> Flat:
        return self._mirror.values

    @property
    def memory_bytes(self) -> int:
        """What lies outside of the buffer: the newest values, what is accrued, with compression what is owed and a difference."""
        owed = sum(8 * part.size for part, owes in zip(self.shard.parts, self._feedback, strict=True) if owes)
        return self.values.nbytes + self.accrued.nbytes + owed + self._delta.nbytes

    @property
    def wanting(self) -> bool:
        """Whether values are on their way, or asked for."""
        return self._asked or self._wanted_with > 0

    # gradients on their way out

    @property
    def has_room(self) -> bool:
        """Whether another push may be begun."""
        return bool(self._bodies)

    @property
    def unacknowledged(self) -> int:
        return len(self._outgoing)

    def fate(self, push: int) -> int:
        """What became of an acknowledged push (`decided`); it is asked for once."""
        return self._fates.pop(push, TAKEN)

    def accrue(self, at: int, gradient: Flat) -> None:
        """Add one piece of this step's gradient; the first step after a push overwrites."""
        flat = self._outgoing[-1].body.view(np.float32) if self._straight else self.accrued
        target = flat[at : at + gradient.size]
        if self.accrued_steps:
            np.add(target, gradient, out=target)
        else:
            np.copyto(target, gradient)

    def begin_push(self, fetch: bool, step: int | None = None) -> None:
        """The accrued gradient, with this step's, will be pushed: parts leave as they become ready. step: of `sync`."""
        self._sequence, self._returns = self._sequence + 1, 0
        based = self._based if self.accrued_steps else self._installed
        if step is not None:
            based = step, based[1]
        self._straight = self._plain and not self.accrued_steps
        awaits = [len(part.entries) for part in self.shard.parts]
        self._outgoing.append(Outgoing(self._sequence, self._bodies.pop(), *based, fetch, awaits))
        if fetch:
            self._wanted_with = self._sequence

    def ready(self, entry: int) -> None:
        """All pieces of this parameter are accrued: a part that holds the last one that was missing may leave."""
        push = self._outgoing[-1]
        for part in self.shard.parts:
            if entry in part.entries:
                push.awaits[part.index] -= 1
                if not push.awaits[part.index]:
                    self._encode(push, part.index)

    def ready_all(self) -> None:
        """Everything is accrued."""
        for entry in dict.fromkeys(piece.entry for piece in self.shard.pieces):
            self.ready(entry)

    def _encode(self, push: Outgoing, index: int) -> None:
        part, feedback = self.shard.parts[index], self._feedback[index]
        if not self._straight:
            (feedback or self._codec).encode(self.accrued[part.start : part.stop], push.body[self._runs[index]])
        push.unsent.add(index)

    def end_step(self, pushed: bool) -> None:
        if not self.accrued_steps:
            self._based = self._installed
        self._straight = False
        self.accrued_steps = 0 if pushed else self.accrued_steps + 1

    # messages

    def ask(self) -> None:
        """Pull values, unless some are on their way already."""
        if not self.wanting:
            self._ask(0)

    def ask_at(self, mark: int) -> None:
        """Pull the values as they are at this mark, whole, instead of any that are on their way."""
        self._wanted_with = 0
        self._ask(mark)

    def ask_back(self) -> None:
        """The same, as they are when this worker's rest has ended."""
        self._wanted_with, self._returns = 0, self._sequence + 1
        self._ask(0)

    def _ask(self, after: int) -> None:
        self._request += 1
        self._asking = self._asked = True
        self._after = after

    def give_up(self) -> None:
        """Wait for no values any more."""
        self._asking, self._asked, self._wanted_with, self._pull_retry_at = False, False, 0, None

    def urgency(self) -> int | None:
        """Of the next message, the lower the sooner; None where there is none."""
        if self.stale or self.ended is Refusal.UNKNOWN:
            return None
        if self._asking:
            return -1
        if self.ended:
            return None
        push = self._next_push()
        return min(self.shard.parts[index].needed for index in push.unsent) if push else None

    def next_message(self, now: float) -> PushPart | PullRequest:
        """What `urgency` spoke of."""
        if self._asking:
            self._asking = False
            self._pull_retry_at = now + self._retry_s * BACKOFF ** min(self._pull_tries, RETRIES_BACKOFF_MAX)
            # At a mark all workers see the same, without what rounding owes.
            have = 0 if self._after else self._mirror.number
            pull = Pull(self._worker, self.generation, self._request, have, self._after, self._returns)
            return PullRequest(self.shard.index, pull)
        push = self._next_push()
        assert push is not None
        index = min(push.unsent, key=lambda i: (self.shard.parts[i].needed, i))
        push.unsent.remove(index)
        push.left.add(index)
        push.sending += 1
        push.retry_at = now + self._retry_s * BACKOFF ** min(push.tries, RETRIES_BACKOFF_MAX)
        data = push.body[self._runs[index]]
        header = Push(
            self._worker,
            self.generation,
            push.sequence,
            index,
            data.nbytes,
            push.based_on,
            push.based_clock,
            push.fetch,
            self._mirror.number,
            self.mark,
        )
        return PushPart(self.shard.index, header, data, self.shard.parts[index].needed)

    def sent(self, message: PushPart) -> None:
        """The part's bytes are not read any more."""
        for push in (*self._outgoing, *self._acknowledged):
            if push.sequence == message.push.sequence:
                push.sending -= 1
        self._reclaim()

    def _next_push(self) -> Outgoing | None:
        push = next((push for push in self._outgoing if push.unsent or len(push.left) < len(self._runs)), None)
        return push if push is not None and push.unsent else None

    def _reclaim(self) -> None:
        self._bodies += [push.body for push in self._acknowledged if not push.sending]
        self._acknowledged = [push for push in self._acknowledged if push.sending]

    # answers

    def place(self, answer: Answer) -> Bytes | None:
        """Where an answer's values are to be received; None: read their bytes and drop them."""
        values = answer.values
        if values is None or self._receiving or values.version < self._floor or answer.generation < self.generation:
            return None
        if not self._is_wanted(answer) and not self._is_news(values, answer):
            return None
        if values.whole:
            self._receiving = True
            return self._mirror.values.view(np.uint8)
        if values.number != self._mirror.number + 1:
            return None
        self._receiving = True
        return self._delta

    def answered(self, answer: Answer, took_values: bool, now: float) -> None:
        """An answer is here; took_values: so are its values, in the place that was given.

        Of one of an older generation than `restart` spoke of only the refusal counts: another process may have said more since.
        """
        is_old = answer.generation < self.generation
        if not is_old:
            self._acknowledge(answer)
        if answer.refusal is not None:
            self.refusals[answer.refusal] += 1
            self._heed(answer.refusal, answer.generation, now)
        if is_old:
            return
        values = answer.values
        if values is None:
            if 0 < self._wanted_with <= answer.sequence:  # it acknowledges the push whose own answer was lost
                self.ask_again()
            return
        if took_values:
            self._receiving = False
            if not values.whole and not self._mirror.add(self._delta, values.number):
                self.ask_again()  # the mirror was given up meanwhile
                return
            self._mirror.number = values.number
            self.version, self.clock, self.fresh = values.version, values.clock, True
            self._floor = values.version
            if self._is_wanted(answer):
                self._have(answer)
        elif not self._receiving and self._is_wanted(answer):
            if values.version < self._floor:
                self._have(answer)  # what is here is newer
                return
            if not values.whole:
                self._mirror.number = 0  # one was missed: ask for all of it
            self.ask_again()  # where they were dropped, there was no place for them at that moment

    def _have(self, answer: Answer) -> None:
        """The values that were asked for are here."""
        self._asking, self._asked, self._pull_retry_at, self._pull_tries = False, False, None, 0
        if not answer.request:  # a pull's may be followed by those that a push asked for
            self._wanted_with = 0

    def _is_wanted(self, answer: Answer) -> bool:
        """Whether its values are those that are waited for, not those of a push or pull before."""
        if answer.request:
            return self._asked and answer.request == self._request
        return answer.sequence >= self._wanted_with > 0

    def _is_news(self, values: Values, answer: Answer) -> bool:
        """Whether they may be taken although later ones are waited for: in `async` any that are newer, so that a worker with
        several pushes under way does not compute from ever older ones; but at a mark only those of the mark."""
        return (
            self._takes_any
            and answer.sequence > 0
            and values.version > self._floor
            and not (self._asked and self._after)
        )

    def ask_again(self) -> None:
        """What was to come will not, or cannot be used: pull."""
        if self._wanted_with:
            self._wanted_with = 0
            self._ask(0)
        elif self._asked:
            self._asking = True

    def broken(self) -> None:
        """The link broke: values that were coming are torn, and what is unacknowledged is sent again once there is a new one."""
        if self._receiving:
            self._receiving = False
            self._mirror.number, self.fresh = 0, False
        self._send_again(self._outgoing, anew=True)
        if self._asked or (self._wanted_with and not self._outgoing):
            self.ask_again()

    def restart(self, generation: int) -> None:
        """The job's workers are of another generation: what is unacknowledged is sent again under it."""
        self.generation, self.stale = generation, False
        self._floor, self._mirror.number = -1, 0  # the shard may have gone back, or be another one
        self._send_again(self._outgoing, anew=True)
        if self._asked:
            self._asking = True

    def take(self) -> Flat:
        """The newest values, to compute from now on."""
        self.fresh = False
        self._installed = (self.version, self.clock)
        return self._mirror.values

    @property
    def is_receiving(self) -> bool:
        return self._receiving

    def _acknowledge(self, answer: Answer) -> None:
        while self._outgoing and self._outgoing[0].sequence <= answer.sequence:
            push = self._outgoing.popleft()
            push.unsent.clear()
            self._acknowledged.append(push)
            if found := fate_of(answer.lately, answer.sequence - push.sequence):
                self._fates[push.sequence] = found
        self._reclaim()

    def _heed(self, why: Refusal, generation: int, now: float) -> None:
        # Who takes part reaches workers and shards at different times.
        unheard = why in (Refusal.STALE_GENERATION, Refusal.UNKNOWN) and generation <= self.generation
        if why is Refusal.GAP or unheard:
            for push in self._outgoing:
                push.retry_at = now + SOON_S * BACKOFF ** min(push.tries, SOON_BACKOFF_MAX)
            if self._asked:
                self._pull_retry_at = now + SOON_S * BACKOFF ** min(self._pull_tries, SOON_BACKOFF_MAX)
        elif why is Refusal.STALE_GENERATION:
            self.stale = generation > self.generation
        elif why in (Refusal.SET_ASIDE, Refusal.UNKNOWN):
            self.ended = why

    # time

    def get_timer(self) -> float | None:
        """When something is to be sent again because nothing was heard."""
        times = [push.retry_at for push in self._outgoing if push.retry_at is not None]
        if self._asked and self._pull_retry_at is not None:
            times.append(self._pull_retry_at)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        due = [push for push in self._outgoing if push.retry_at is not None and push.retry_at <= now]
        for push in due:
            if push.sending:  # nobody can have answered yet, and over a slow link nothing goes twice
                push.retry_at = now + self._retry_s
            else:
                push.tries += 1
        self._send_again(push for push in due if not push.sending)
        if self._asked and self._pull_retry_at is not None and self._pull_retry_at <= now:
            self._pull_retry_at, self._asking = None, True
            self._pull_tries += 1

    def _send_again(self, pushes: Iterable[Outgoing], *, anew: bool = False) -> None:
        """anew: to whom nothing was sent yet, so that its silence so far says nothing."""
        self._pull_tries = 0 if anew else self._pull_tries
        for push in pushes:
            push.tries, push.retry_at = 0 if anew else push.tries, None
            push.unsent |= push.left
            push.left.clear()
