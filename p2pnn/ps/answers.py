"""The answers of a shard on their way out: read from the parameters as late as possible, compressed per worker where asked.

An answer with values names memory that must keep what it holds until it is sent: the version that it was read from, or the
worker's own buffer of a compressed difference. `next` passes over a worker whose last one has not left yet, so that a slow link
carries the newest values, once, and not those of every push behind each other. There is at most one answer per worker and push,
and one per worker for pulls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from p2pnn.ps.compression import Buffer, Bytes, Deltas, codec, new
from p2pnn.ps.layout import WINDOW
from p2pnn.ps.messages import Answer, Refusal, Values, Worker
from p2pnn.ps.versions import Versions

BEHIND: Final = WINDOW - 1
"""A push leaves while the answers to those before it are yet to come: what it says of the newest values is so many behind."""


@dataclass(frozen=True, slots=True)
class Due:
    """An answer that may leave. fetch: with values. have: the number of the newest values that the worker has.
    returns: as of `messages.Pull`; lately: as of `messages.Answer`."""

    worker: Worker
    sequence: int = 0
    request: int = 0
    refusal: Refusal | None = None
    log_number: int = 0
    fetch: bool = True
    have: int = 0
    returns: int = 0
    lately: int = 0


@dataclass(slots=True)
class _Stream:
    deltas: Deltas
    out: Bytes
    busy: bool = False


class Answers:
    """pull: the name of the compression of parameters; float32 sends them as they are, from where they lie. buffer: of what is
    compressed; a worker that has left leaves its own to the next that comes.
    """

    def __init__(self, versions: Versions, pull: str, clock: Callable[[], int], buffer: Buffer = new) -> None:
        self._versions = versions
        self._pull = pull
        self._clock = clock
        self._buffer = buffer
        self._due: dict[tuple[Worker, bool], Due] = {}
        self._streams: dict[Worker, _Stream] = {}
        self._unused: list[_Stream] = []
        self._busy: set[Worker] = set()  # values for these are leaving
        self._leaving: dict[int, tuple[Answer, int, _Stream | None]] = {}  # by identity: an answer and what it holds
        self.sent_bytes = 0

    def add(self, due: Due) -> None:
        """It may leave. In the place of one for an earlier push (an answer acknowledges all before) or pull of that worker.

        Values that the earlier one owed are owed still.
        """
        key = due.worker, due.request > 0
        earlier = self._due.pop(key, None)
        if earlier is not None and earlier.fetch and not due.fetch and not due.request:
            due = replace(due, fetch=True, have=earlier.have)
        self._due[key] = due

    def drop(self, worker: Worker) -> None:
        """The worker has left."""
        if (stream := self._streams.pop(worker, None)) is not None:
            self._unused.append(stream)
        for pushed in (False, True):
            self._due.pop((worker, pushed), None)

    def clear(self) -> None:
        """Whoever asked will ask somebody else."""
        self._due.clear()
        for worker in list(self._streams):
            self.drop(worker)

    def next(self, generation: int, may_leave: Callable[[Due], bool] = lambda due: True) -> Answer | None:
        """An answer to send now; `sent` is called when it has left, or when its link has broken."""
        for key, due in self._due.items():
            if not may_leave(due) or (due.fetch and due.worker in self._busy):
                continue
            del self._due[key]
            values, pin = self._read(due) if due.fetch else (None, -1)
            answer = Answer(
                due.worker, generation, due.sequence, due.request, due.refusal, due.log_number, values, due.lately
            )
            if values is not None:
                self._busy.add(due.worker)
                self._leaving[id(answer)] = answer, pin, self._streams.get(due.worker)
                self.sent_bytes += values.data.nbytes
            return answer
        return None

    def sent(self, answer: Answer) -> None:
        """Its bytes are not needed any more. An answer is given back once; without values there is nothing to give back."""
        if id(answer) not in self._leaving:
            return
        _, pin, stream = self._leaving.pop(id(answer))
        self._busy.discard(answer.worker)
        self._versions.unpin(pin)
        if stream is not None:
            stream.busy = False

    def _read(self, due: Due) -> tuple[Values, int]:
        versions, clock = self._versions, self._clock()
        if self._pull == "float32":
            return Values(versions.number, clock, versions.newest.view(np.uint8)), versions.pin()
        stream = self._streams.get(due.worker)
        if stream is None:
            stream = self._streams[due.worker] = self._new_stream()
        behind = 0 if due.request else BEHIND
        stream.busy, whole = True, not stream.deltas.follows(due.have, behind)
        data = stream.out
        if whole:
            data = stream.deltas.restart(versions.newest)
        else:
            stream.deltas.encode(versions.newest, stream.out)
        return Values(versions.number, clock, data, whole, stream.deltas.number), -1

    def _new_stream(self) -> _Stream:
        unused = next((stream for stream in self._unused if not stream.busy), None)
        if unused is not None:
            self._unused.remove(unused)
            unused.deltas.number = 0
            return unused
        how, size = codec(self._pull), self._versions.newest.size
        return _Stream(Deltas(how, size, self._buffer), self._buffer(how.byte_count(size)))
