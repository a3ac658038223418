"""A model replica: one worker of a data-parallel run, with all the shards that hold its parameters. Pure.

Downpour SGD is Algorithm 7.1 of Dean et al. 2012 (`async`), step by step:

    step mod n_fetch = 0    start fetching parameters; they are put in place when they are here, between two steps
    always                  accrued ← accrued + gradient;  parameters ← parameters − α · gradient   (α: `local_rate`)
    step mod n_push = 0     start pushing what is accrued;  accrued ← 0

Fetching and pushing go on while steps are computed. A push that is followed at once by a fetch asks for it in the same round
trip. One pull is under way at a time, and at most `layout.WINDOW` pushes: then a step waits, so that staleness has a bound. In
all other kinds every push is answered before the next step begins. With `local:H` there are H steps of the worker's own
optimizer between pushes, and what is pushed is the difference that they made. Before a mark what is left is pushed as it is.

    begin_step       True: compute a step from `parameters`; False: not yet (ask again after the next answer)
    gradient_ready   a parameter's gradient lies in `gradient`: it is accrued, and what it completes may leave
    end_step         all are there
    rest             there is nothing to train: no bound waits for this worker until its next step
    acknowledged     which steps are decided by all shards
    settle, mark     push what is left; draw a mark (`messages`), and ask for the values of that moment
    has_values       they are here; install: put them in place
    next_message     what to send next over which shard's link; sent: its bytes have left
    place, answered  where an answer's values go; it is here
    broken, restart  a link broke; the job's workers have another generation
    get_timer, handle_timer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Final

import numpy as np

from p2pnn.errors import LocalProtocolError
from p2pnn.job.spec import Optimizer
from p2pnn.ps.compression import Buffer, Bytes, new
from p2pnn.ps.consistency import Settings
from p2pnn.ps.decided import Decided
from p2pnn.ps.messages import Answer, Mark, Refusal, Worker
from p2pnn.ps.optimizers import ShardOptimizer
from p2pnn.ps.outgoing import BACKOFF, RETRIES_BACKOFF_MAX, MarkNote, PullRequest, PushPart
from p2pnn.ps.port import Port
from p2pnn.ps.sharding import Piece, Sharding
from p2pnn.ps.space import Flat
from p2pnn.train.optimizers import Combine, combine

LEFT: Final = 1 << 48
"""The mark of a worker that has left: no script is so long."""

RETRY_S: Final = 30.0
"""Links lose nothing while they last, and an answer may wait for the slowest worker: this is for what nobody thought of."""


class Replica:
    """parameters, gradient: float32 of the whole space; the caller reads the one and writes the other, by `Space.views`. They may
    be given, so that an engine computes where they lie.

    sharding: of this replica's own space (`Space.only` where a replica is cut into segments, each of which is one of these).
    optimizer: of the H local steps, unused otherwise; steps: how many of its own the run will take in all, step: how many were
    taken before. buffer: for the bodies of pushes.
    """

    def __init__(
        self,
        worker: Worker,
        sharding: Sharding,
        settings: Settings,
        *,
        generation: int = 0,
        optimizer: Optimizer | None = None,
        steps: int = 0,
        step: int = 0,
        parameters: Flat | None = None,
        gradient: Flat | None = None,
        retry_s: float = RETRY_S,
        buffer: Buffer = new,
        combine: Combine = combine,
    ) -> None:
        self.step = self._first = step
        space = sharding.space
        self.parameters = np.zeros(space.size, np.float32) if parameters is None else parameters
        self.gradient = np.zeros(space.size, np.float32) if gradient is None else gradient
        self._sharding, self._settings, self._combine = sharding, settings, combine
        self._local = settings.consistency.kind == "local"
        if self._local and optimizer is None:
            raise LocalProtocolError("local:H needs the optimizer of the local steps")
        self._inner = (
            ShardOptimizer(optimizer, space.size, space.decay, steps=steps, combine=combine)
            if self._local and optimizer is not None
            else None
        )
        self._ports = [
            Port(worker, shard, settings, generation, retry_s=retry_s, buffer=buffer) for shard in sharding.shards
        ]
        self._port = {port.shard.index: port for port in self._ports}
        self._pieces: list[list[tuple[Port, Piece]]] = [[] for _ in space.entries]
        for port in self._ports:
            for piece in port.shard.pieces:
                self._pieces[piece.entry].append((port, piece))
        self._worker, self._generation, self._retry_s = worker, generation, retry_s
        self._pushing = False
        self._began = step  # when the state of the local steps' optimizer was zero
        self._since = 0  # steps since the last push
        self._fetching = 0  # the mark whose values are awaited
        self._mark = 0
        self._left = False
        self._note_due, self._note_tries = False, 0
        self._note_retry_at: float | None = None
        self._note_push = 0  # the newest that does not bear what the note says
        self._rests = False
        self.decided = Decided(step)
        self._missing: set[int] | None = None  # parameters without gradient in the step that is under way
        for port in self._ports:
            port.ask()

    # steps

    def begin_step(self, now: float) -> bool:
        """Begin a step if it may begin. Then `parameters` stays as it is until `gradient_ready` or `end_step` changes it."""
        if self._missing is not None:
            raise LocalProtocolError(f"step {self.step} has not ended")
        if self._rests:
            self._rests = False
            for port in self._ports:
                port.ask_back()
        settings, step = self._settings, self.step
        pushing = self._since + 1 == settings.consistency.local_steps if self._local else step % settings.n_push == 0
        if self.ended is not None or not self._may_begin() or (pushing and not self._has_room()):
            return False
        self.install()
        asked = step == self._first or (step - 1) % settings.n_push == 0  # by the first pull, or with the last push
        if not settings.consistency.waits and step % settings.n_fetch == 0 and not asked:
            for port in self._ports:
                port.ask()
        if pushing:
            fetch = settings.consistency.waits or (step + 1) % settings.n_fetch == 0
            for port in self._ports:
                port.begin_push(fetch, step if settings.consistency.kind == "sync" else None)
            self.decided.begins(step + 1)
        self._pushing, self._missing = pushing, set(range(len(self._pieces)))
        return True

    def gradient_ready(self, name: str, now: float) -> None:
        """A parameter's gradient of this step is complete in `gradient`. With `local:H` it waits for the step's end."""
        entry = self._sharding.space.index(name)
        if self._missing is None or entry not in self._missing:
            raise LocalProtocolError(f"the gradient of {name!r} is not awaited in step {self.step}")
        self._missing.remove(entry)
        if self._local:
            return
        for port, piece in self._pieces[entry]:
            port.accrue(piece.at, self.gradient[piece.start : piece.stop])
        if self._pushing:
            for port in dict.fromkeys(port for port, _ in self._pieces[entry]):
                port.ready(entry)
        if self._settings.local_rate:
            place = self._sharding.space.entries[entry]
            run = slice(place.start, place.stop)
            self._combine(-self._settings.local_rate, self.gradient[run], 1.0, self.parameters[run])

    def end_step(self, now: float) -> None:
        """All gradients were ready. Raises LocalProtocolError where one was not."""
        if self._missing is None or self._missing:
            names = sorted(self._sharding.space.entries[entry].name for entry in self._missing or ())
            raise LocalProtocolError(f"step {self.step} ends without gradients of {names[:3]}")
        if self._inner is not None:
            rate, update = self._inner.rate(self.step), self.step - self._began
            self._inner.apply(self.parameters, self.gradient, update=update, rate=rate)
            if self._pushing:
                self._push_differences()
        for port in self._ports:
            port.end_step(self._pushing)
        self.step += 1
        self._since = 0 if self._pushing else self._since + 1
        self._missing = None

    def _push_differences(self) -> None:
        """What the local steps took away: θ − θ_k, DiLoCo's outer gradient of this worker."""
        for port in self._ports:
            self._sharding.take(port.shard.index, self.parameters, port.accrued)
            np.subtract(port.values, port.accrued, out=port.accrued)
            port.ready_all()

    def _has_room(self) -> bool:
        return all(port.has_room for port in self._ports)

    def _may_begin(self) -> bool:
        """Whether what the step needs to be computed from is here."""
        if self._fetching or any(p.version < 0 or (p.is_receiving and self.step == self._first) for p in self._ports):
            return False
        return not self._settings.consistency.waits or (self.has_values and not self.unacknowledged)

    @property
    def may_begin(self) -> bool:
        """Whether `begin_step` waits for no values: what is here is what the next step would be computed from."""
        return self.ended is None and self._missing is None and self._may_begin()

    @property
    def version(self) -> int:
        """How many updates the newest values that are here hold, of any shard at least."""
        return min(port.version for port in self._ports)

    def skip_to(self, step: int) -> None:
        """Do no steps before this one: others have made them without this worker (`backup`, see `version`), or it may make none.

        In `sync` a step's number is that of the update which is made of it, on every shard.
        """
        if self._missing is not None or step < self.step:
            raise LocalProtocolError(f"step {self.step} cannot be left out for step {step}")
        self.step = step

    # batches that come as they are asked for (`leasing`)

    def rest(self) -> None:
        """There is nothing to train, and `settle` said True. Where workers wait for one another, say that nobody is to wait for
        this one. The next step ends that first, on every shard, and begins from values of then: its push is behind no bound."""
        if self._settings.consistency.kind == "ssp" and not self._rests and not self._left:
            self._rests = self._note_due = True
            self._note_tries = 0

    # marks

    def settle(self, now: float) -> bool:
        """Push what the steps since the last push have made, if any. True: a mark may be drawn, for all is acknowledged and what
        the one before has asked for is here; False: not yet (ask again after the next answer)."""
        if self._missing is not None:
            raise LocalProtocolError(f"step {self.step} has not ended")
        if self._since and self._has_room():
            self._push_rest()
        return self._is_settled()

    def _is_settled(self) -> bool:
        return not (self._since or self.unacknowledged or self._fetching)

    def _push_rest(self) -> None:
        self.decided.begins(self.step)
        for port in self._ports:
            port.begin_push(self._settings.consistency.waits)
        if self._local:
            self._push_differences()
        for port in self._ports:
            if not self._local:
                port.ready_all()
            port.end_step(pushed=True)
        self._since = 0

    def mark(self, sequence: int, now: float, *, fetch: bool = False) -> None:
        """Draw the mark before the script's command `sequence`; `settle` said True.

        fetch: ask for the values as they are when all workers have drawn it; see `has_values` and `install`. Where steps wait
        for one another they are always asked for: what this worker has may lack pushes that others made last.
        """
        if self._left:
            if fetch:
                self._fetching = sequence
                for port in self._ports:
                    port.ask_at(sequence)
            return
        if self._missing is not None or not self._is_settled():
            raise LocalProtocolError(f"the mark {sequence} comes before all that was pushed is acknowledged")
        if sequence <= self._mark:
            raise LocalProtocolError(f"the mark {sequence} does not come after {self._mark}")
        if fetch or self._settings.consistency.kind in ("ssp", "local"):
            self._fetching = sequence
            for port in self._ports:
                port.ask_at(sequence)
        else:
            self._passed(sequence)

    def leave(self) -> None:
        """Push nothing any more, because one shard has set this worker aside: so that no other one waits for it, it draws a mark
        that lies before no command. It may still ask for values at marks."""
        if not self._left:
            self._left = True
            for port in self._ports:
                port.give_up()
            self._passed(LEFT)

    def _passed(self, mark: int) -> None:
        if self._left:
            mark = LEFT
        self._mark, self._fetching, self._note_due, self._note_tries = mark, 0, True, 0
        self._note_push = self.decided.begun
        for port in self._ports:
            port.mark = mark

    @property
    def awaits_mark(self) -> bool:
        """Whether the values that were asked for at a mark are yet to come."""
        return self._fetching > 0

    @property
    def has_values(self) -> bool:
        """Whether all values that were asked for are here."""
        return all(port.version >= 0 and not port.wanting and not port.is_receiving for port in self._ports)

    def install(self, *, again: bool = False) -> None:
        """Put the newest values that are here into `parameters`; `begin_step` does so, too. again: also those that were there."""
        if self._missing is not None:
            raise LocalProtocolError(f"step {self.step} has not ended")
        for port in self._ports:
            if (port.fresh or again) and not port.is_receiving:
                self._sharding.put(port.shard.index, port.take(), self.parameters)

    # messages

    def next_message(self, now: float, among: Container[int] | None = None) -> PushPart | PullRequest | MarkNote | None:
        """Of the messages to these shards (to all) the one that is needed first. among: the shards whose links have room."""
        if self._note_due:
            self._note_due = False
            self._note_retry_at = now + self._retry_s * BACKOFF ** min(self._note_tries, RETRIES_BACKOFF_MAX)
            return MarkNote(Mark(self._worker, self._generation, self._mark, self._rests, self.decided.begun))
        able = [port for port in self._ports if among is None or port.shard.index in among]
        urgent = [(urgency, port.shard.index) for port in able if (urgency := port.urgency()) is not None]
        return self._port[min(urgent)[1]].next_message(now) if urgent else None

    def sent(self, message: PushPart | PullRequest | MarkNote) -> None:
        """The message has left, or its link is broken: its bytes are not read any more. Once per message."""
        if isinstance(message, PushPart):
            self._port[message.shard].sent(message)

    def place(self, shard: int, answer: Answer) -> Bytes | None:
        """Where the bytes of an answer's values go, before they come; None: drop them. Then call `answered`."""
        return self._port[shard].place(answer)

    def answered(self, shard: int, answer: Answer, now: float, *, took_values: bool) -> None:
        """An answer is here. took_values: `place` gave a place, and the values are in it."""
        self._port[shard].answered(answer, took_values, now)
        self.decided.heard(self._ports)
        if self._fetching and self.has_values:
            self._passed(self._fetching)

    def broken(self, shard: int, now: float) -> None:
        """The link to a shard broke; messages that were given to it are to be reported as `sent` first."""
        self._port[shard].broken()
        self._note_due, self._note_tries = self._mark > 0 or self._rests, 0

    def restart(self, generation: int, now: float, shard: int | None = None) -> None:
        """The job's workers have another generation, of which this one still is; or the processes of one shard have, of which
        another one may be the primary now (a mark then still has the generation of the workers)."""
        self._note_due, self._note_tries = self._mark > 0 or self._rests, 0
        if shard is None:
            self._generation = generation
        for port in self._ports if shard is None else [self._port[shard]]:
            port.restart(generation)

    def generation_of(self, shard: int) -> int:
        """By which its messages to a shard are sent."""
        return self._port[shard].generation

    def get_timer(self) -> float | None:
        times = [self._note_retry_at, *(port.get_timer() for port in self._ports)]
        return min((at for at in times if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        if self._note_retry_at is not None and self._note_retry_at <= now:
            # A push behind a mark says so itself; what all shards have decided of it, they know.
            self._note_retry_at, self._note_due = None, self._rests or self.decided.pushes <= self._note_push
            self._note_tries += 1
        for port in self._ports:
            port.handle_timer(now)

    # what a person may see

    @property
    def ended(self) -> Refusal | None:
        """Why a shard wants nothing more from this worker, if so."""
        return next((port.ended for port in self._ports if port.ended is not None), None)

    @property
    def refusals(self) -> Counter[Refusal]:
        """How often pushes were refused, by reason, over all shards."""
        return sum((port.refusals for port in self._ports), Counter[Refusal]())

    @property
    def state(self) -> dict[str, Flat]:
        """Of the local steps' optimizer, slot → float32 of the whole space; none but with `local:H`."""
        return self._inner.state if self._inner is not None else {}

    def resume(self) -> None:
        """`state` holds what it held after the steps that were taken before."""
        self._began = 0

    @property
    def memory_bytes(self) -> int:
        """What lies outside of `buffer`, without `parameters` and `gradient`."""
        return sum(array.nbytes for array in self.state.values()) + sum(port.memory_bytes for port in self._ports)

    @property
    def acknowledged(self) -> tuple[int, int]:
        """How many steps all shards have decided, by `step`, and in how many pushes."""
        return self.decided.steps, self.decided.pushes

    @property
    def unacknowledged(self) -> int:
        """Pushes that no answer has come to, over all shards: a worker that leaves waits until there are none."""
        return sum(port.unacknowledged for port in self._ports)
