"""What workers and shards say to each other, as records; the bytes of values travel behind them.

A push is sent in parts (`sharding.Part`), each with the whole header, in any order; the shard takes it when all are there. Pushes
are numbered per worker incarnation and shard from 1, without a gap. An answer acknowledges all pushes up to its number.

A *mark* is a line that all workers draw at the same place of the job's script, between two steps: each says that its pushes
before it are acknowledged (`Mark`, or a pull with `after`, which then is answered when all have drawn it), and its pushes behind
it, which name it, are decided when all have. So what is read at a mark holds all pushes before it and no other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from p2pnn.ps.compression import Bytes
from p2pnn.types import NodeId


@dataclass(frozen=True, slots=True, order=True)
class Worker:
    """One life of one worker: a process that was started again is another one. incarnation: rises with each life of a node."""

    node: NodeId
    incarnation: int = 0

    def __str__(self) -> str:
        return f"{self.node[:8]}/{self.incarnation}"


class Refusal(enum.Enum):
    """Why a push was not applied; the value says so to a person. `BAD` are those that speak against the worker."""

    NOT_FINITE = "its gradient has NaN or infinite elements"
    RUNAWAY = "its gradient is far larger than those before"
    SHAPE = "it does not have the shard's size"
    AHEAD = "it is based on a version that does not exist yet"
    TOO_STALE = "it is based on parameters that are too old"
    LATE = "the step was made from other workers' gradients"
    STALE_GENERATION = "it belongs to another generation of the job"
    GAP = "a push before it has not arrived"
    UNKNOWN = "this worker does not belong to the job"
    SET_ASIDE = "this worker was set aside for its bad pushes"


BAD = frozenset({Refusal.NOT_FINITE, Refusal.RUNAWAY, Refusal.SHAPE, Refusal.AHEAD})


@dataclass(frozen=True, slots=True)
class Push:
    """Header of one part of a push. part: its index; byte_count: of its body.

    based_on, based_clock: `version` and `clock` of the answer whose values the gradient was computed from; in `sync`, based_on
    is the step that it is for, which each shard makes into its update of that number. fetch: answer with fresh values; have:
    the number of the newest values that the worker has (for differences; see `compression.Deltas`). mark: the worker's newest,
    behind which this push is.
    """

    worker: Worker
    generation: int
    sequence: int
    part: int
    byte_count: int
    based_on: int
    based_clock: int = 0
    fetch: bool = True
    have: int = 0
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Pull:
    """A request for values alone. request: the worker's number for it, from 1. after: the mark at which they are read, or 0.

    returns: the number of the worker's next push, where it rested before that (`Mark`): its rest ends, and then it is answered.
    """

    worker: Worker
    generation: int
    request: int
    have: int = 0
    after: int = 0
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """The worker has drawn the mark `sequence` (a number of the script, which rises), and needs no more values of before.

    rests: it has nothing to train after `pushes` pushes.
    """

    worker: Worker
    generation: int
    sequence: int
    rests: bool = False
    pushes: int = 0


@dataclass(frozen=True, slots=True)
class Values:
    """A shard's parameters. whole: float32 as they are; else a compressed difference to values `number` − 1.

    number: of this message in the worker's stream, 0 where pulls are not compressed. data: uint8, to be sent before
    `Shard.answer_sent` is called. version, clock: how many updates are in them, and how many pushes at least of each worker.
    """

    version: int
    clock: int
    data: Bytes
    whole: bool = True
    number: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """To a push (sequence > 0) or a pull (request > 0). refusal: None where the push was applied. generation: the shard's.

    log_number: under which the push was applied; whoever replicates the log sends no answer before that number is held by all.
    lately: what became of the push `sequence` and the one before (`decided.with_fate`); an answer may stand for two.
    """

    worker: Worker
    generation: int
    sequence: int = 0
    request: int = 0
    refusal: Refusal | None = None
    log_number: int = 0
    values: Values | None = None
    lately: int = 0
