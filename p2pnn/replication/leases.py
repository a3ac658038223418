"""Which worker has which range of the data: a small table that is replicated like a shard's parameters.

An epoch is a count of batches. A worker *takes* a range of them, trains it, and says so (*done*); a dead worker's ranges are
*lost* and leased again, the oldest first, so every batch is trained at least once as long as any worker lives. Since a worker
may have trained more than it could say before it died, or say so after it was given up, a batch may be trained twice: the
coverage of an epoch says how many were trained once, twice or more, never.

The table is a state machine: `apply` takes the bytes of one committed update, and all replicas of it stay equal. Updates are
exactly-once already (`log.Sessions`); a worker learns what it holds from the answer, which is read from the table, not from the
update, so an update that was sent twice is answered rightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pnn.errors import RemoteProtocolError
from p2pnn.replication.staging import Body
from p2pnn.wire.fields import Count
from p2pnn.wire.messages import CloseReason

FORMAT: Final = 1
BATCHES_MAX: Final = 2**31
RANGES_MAX: Final = 512
"""Stretches of equal fate in one epoch. A table that has as many grants whole ones only; one that has twice as many (somebody
reports ranges that nobody leased) counts no more parts of them."""

LEASES_MAX: Final = 16
"""Of one worker at once."""

OPEN_EPOCHS_MAX: Final = 2
"""Epochs under way at once: a fast worker begins the next one while another ends the last."""


class Lease(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Batches from `start` up to `stop` (not included) of an epoch, counted from 0."""

    epoch: Count
    start: Annotated[int, Meta(ge=0, le=BATCHES_MAX)]
    stop: Annotated[int, Meta(ge=0, le=BATCHES_MAX)]

    @property
    def batches(self) -> int:
        return self.stop - self.start


class Take(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The worker wants up to so many batches more."""

    worker: Count
    batches: Annotated[int, Meta(ge=1, le=BATCHES_MAX)]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The worker has trained these batches."""

    worker: Count
    lease: Lease


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The worker is gone: what it holds is free again. A later Take of it is refused."""

    worker: Count


Update = Take | Done | Lost


class Coverage(msgspec.Struct, frozen=True):
    """Of one epoch: batches that were trained once, more often, and not (yet)."""

    epoch: int
    once: int
    more: int
    never: int


class _Stretch(msgspec.Struct, array_like=True):
    """Batches up to `stop`, from where the one before ends. trained: how often. holder: the worker that has them; 0 for none."""

    stop: int
    trained: int = 0
    holder: int = 0


class _State(msgspec.Struct, array_like=True):
    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    epochs: int
    batches: int
    open: dict[int, list[_Stretch]]
    closed: list[Coverage]
    gone: list[int]


_encoder: Final = msgspec.msgpack.Encoder()
_updates: Final = msgspec.msgpack.Decoder(Update)
_states: Final = msgspec.msgpack.Decoder(_State)
_answers: Final = msgspec.msgpack.Decoder(tuple[Lease, ...])


def encode(update: Update) -> bytes:
    """An update, for `Pusher.push`."""
    return _encoder.encode(update)


def decode(pieces: Sequence[Body]) -> Update:
    """The update in these bytes. Raises RemoteProtocolError where they are none: refuse it."""
    try:
        return _updates.decode(b"".join(pieces))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError(CloseReason.MALFORMED, f"this is no update of a table of leases: {error}") from None


def read_answer(answer: bytes) -> tuple[Lease, ...]:
    """The leases that a worker holds, the oldest first. Raises RemoteProtocolError for bytes that are no answer."""
    try:
        return _answers.decode(answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError(CloseReason.MALFORMED, f"this is no answer of a table of leases: {error}") from None


class LeaseTable:
    """epochs, batches: how many there are, and in each. Raises ValueError where either is below 1."""

    def __init__(self, epochs: int, batches: int) -> None:
        if epochs < 1 or not 1 <= batches <= BATCHES_MAX:
            raise ValueError(
                f"{epochs} epochs of {batches} batches: both are at least 1, batches at most {BATCHES_MAX}"
            )
        self._state = _State(FORMAT, epochs, batches, {}, [], [])
        self._open_epochs()

    @property
    def is_over(self) -> bool:
        """Whether every batch of every epoch has been trained."""
        return len(self._state.closed) == self._state.epochs

    def apply(self, update: Update) -> None:
        """A committed update. All replicas apply the same in the same order."""
        match update:
            case Take(worker, batches):
                self._take(worker, batches)
            case Done(worker, lease):
                self._done(worker, lease)
            case Lost(worker):
                self._lost(worker)

    def answer(self, worker: int) -> bytes:
        """What the worker holds now, as `read_answer` reads it; goes into Pushed."""
        return _encoder.encode(self.leases(worker))

    def leases(self, worker: int) -> tuple[Lease, ...]:
        """What the worker holds, the oldest first."""
        return tuple(lease for lease, stretch in self._stretches() if stretch.holder == worker and worker)

    def workers(self) -> set[int]:
        """Those who hold anything."""
        return {stretch.holder for _, stretch in self._stretches() if stretch.holder}

    def coverage(self) -> list[Coverage]:
        """Of each epoch that has begun, in order. Of one that is over: as it was when its last batch was done."""
        return [*self._state.closed, *(self._cover(epoch) for epoch in sorted(self._state.open))]

    def state(self) -> bytes:
        """The whole table, for learners and checkpoints."""
        return _encoder.encode(self._state)

    def load(self, pieces: Sequence[Body]) -> None:
        """Become the table of `state`. Raises RemoteProtocolError for bytes that are none."""
        try:
            self._state = _states.decode(b"".join(pieces))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RemoteProtocolError(CloseReason.MALFORMED, f"this is no table of leases: {error}") from None

    # --- updates

    def _take(self, worker: int, batches: int) -> None:
        """The oldest free batches; nothing where there are none, or the worker has enough, is gone, or is nobody."""
        if worker == 0 or worker in self._state.gone or len(self.leases(worker)) >= LEASES_MAX:
            return
        for lease, stretch in self._stretches():
            if not stretch.trained and not stretch.holder:
                stretches = self._state.open[lease.epoch]
                if len(stretches) >= RANGES_MAX:
                    batches = lease.batches
                self._mark(Lease(lease.epoch, lease.start, min(lease.stop, lease.start + batches)), holder=worker)
                return

    def _done(self, worker: int, lease: Lease) -> None:
        """Count the batches, whoever holds them by now. What the worker held of them is not its any more."""
        epoch = self._state.open.get(lease.epoch)
        if epoch is None:
            self._count_late(lease)
            return
        if lease.start < lease.stop <= self._state.batches and len(epoch) < 2 * RANGES_MAX:
            self._mark(lease, trained=1, released=worker)
            self._close_epochs()

    def _lost(self, worker: int) -> None:
        if worker and worker not in self._state.gone:
            self._state.gone.append(worker)
        for lease in self.leases(worker):
            self._mark(lease, released=worker)

    def _count_late(self, lease: Lease) -> None:
        """Of an epoch that is over: batches that were trained once have been trained twice."""
        for at, coverage in enumerate(self._state.closed):
            if coverage.epoch == lease.epoch and 0 < lease.batches <= self._state.batches:
                again = min(lease.batches, coverage.once)
                self._state.closed[at] = Coverage(coverage.epoch, coverage.once - again, coverage.more + again, 0)

    # --- stretches

    def _stretches(self) -> list[tuple[Lease, _Stretch]]:
        """All of the open epochs, in order."""
        found = []
        for epoch in sorted(self._state.open):
            start = 0
            for stretch in self._state.open[epoch]:
                found.append((Lease(epoch, start, stretch.stop), stretch))
                start = stretch.stop
        return found

    def _mark(self, lease: Lease, *, holder: int = 0, trained: int = 0, released: int = 0) -> None:
        """Change the batches of a range: who holds them, how often they were trained. Equal neighbours become one."""
        after: list[_Stretch] = []
        start = 0
        for stretch in self._state.open[lease.epoch]:
            for stop in sorted(
                {min(max(lease.start, start), stretch.stop), min(max(lease.stop, start), stretch.stop), stretch.stop}
            ):
                if stop <= start:
                    continue
                part = _Stretch(stop, stretch.trained, stretch.holder)
                if lease.start <= start and stop <= lease.stop:
                    part.trained += trained
                    part.holder = holder or (0 if part.holder == released or trained else part.holder)
                if after and (after[-1].trained, after[-1].holder) == (part.trained, part.holder) and not part.holder:
                    after[-1].stop = stop
                else:
                    after.append(part)
                start = stop
        self._state.open[lease.epoch] = after

    def _cover(self, epoch: int) -> Coverage:
        counts = [0, 0, 0]
        start = 0
        for stretch in self._state.open[epoch]:
            counts[min(stretch.trained, 2)] += stretch.stop - start
            start = stretch.stop
        return Coverage(epoch, counts[1], counts[2], counts[0])

    def _close_epochs(self) -> None:
        for epoch in sorted(self._state.open):
            coverage = self._cover(epoch)
            if coverage.never:
                break
            self._state.closed.append(coverage)
            del self._state.open[epoch]
        self._open_epochs()

    def _open_epochs(self) -> None:
        """The next epochs, while few are open."""
        state = self._state
        while len(state.open) < OPEN_EPOCHS_MAX and len(state.closed) + len(state.open) < state.epochs:
            state.open[len(state.closed) + len(state.open)] = [_Stretch(state.batches)]
