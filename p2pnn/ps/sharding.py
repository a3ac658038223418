"""Cut the flat space into shards.

    equal         shard i holds elements [i·n/S, (i+1)·n/S): equal bytes to within one element; a parameter may straddle
    greedy        whole parameters, the largest first, each to the shard with the fewest bytes so far (LPT, Graham 1969: at
                  most 4/3 − 1/(3S) times the least possible maximum)
    round-robin   parameter i to shard i mod S, as TensorFlow's `tf.train.replica_device_setter` did

A shard is a row of *pieces* (runs of the space that belong to one parameter), in graph order, end to end in its own flat
buffer. It is pushed in *parts*: pieces that together are neither too small for a message of their own nor so large that an
urgent one would wait long behind them. A part may leave as soon as the gradients of its own parameters exist. All of it
follows from graph, number and policy, so each node knows it.

Where a model replica is cut over several nodes, each of them has a *segment*: some of the parameters, in a space of its own. No
shard holds parameters of two segments, so that one node alone of each replica speaks to it (`cut_segments`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np

from p2pnn.errors import PlanError
from p2pnn.ps.space import ELEMENT_BYTES, Flat, Space

POLICIES: Final = ("equal", "greedy", "round-robin")

PART_ELEMENTS_MIN: Final = 16_384
"""64 KiB: below that a message's header and wake-up cost more than its bytes."""

PART_ELEMENTS_MAX: Final = 1 << 20
"""4 MiB: 34 ms at 1 Gbit/s is how long a first-needed layer may wait behind another part."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, stop) of the space, of the parameter with this index; they lie from `at` on in the shard's buffer."""

    entry: int
    start: int
    stop: int
    at: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Part:
    """Elements [start, stop) of a shard's buffer. entries: the parameters (indices) that lie there, wholly or in part.

    needed: the first op that reads any of them: what is needed first is sent first.
    """

    index: int
    start: int
    stop: int
    entries: tuple[int, ...]
    needed: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ShardRange:
    """What one shard holds. decay: (start, stop, whether weight decay applies) over its buffer, end to end."""

    index: int
    size: int
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    decay: tuple[tuple[int, int, bool], ...]

    @property
    def byte_count(self) -> int:
        return self.size * ELEMENT_BYTES


class Sharding:
    """How a space lies in shards. Made by `cut` and `cut_segments`; of a segment it has some of the job's shards, with their
    numbers. segments: by shard of the job, the number of the segment whose parameters it holds; all 0 where nothing is cut."""

    def __init__(
        self, space: Space, policy: str, shards: Iterable[ShardRange], segments: Sequence[int] | None = None
    ) -> None:
        self.space = space
        self.policy = policy
        self.shards = tuple(shards)
        self.segments = tuple(segments) if segments is not None else (0,) * len(self.shards)
        self._by_number = {shard.index: shard for shard in self.shards}
        self._holders: list[list[int]] = [[] for _ in space.entries]
        for shard in self.shards:
            for entry in dict.fromkeys(piece.entry for piece in shard.pieces):
                self._holders[entry].append(shard.index)

    def shards_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """The shards that hold any of these parameters: those that a segment which reads them speaks to."""
        return tuple(sorted({shard for name in names for shard in self._holders[self.space.index(name)]}))

    def who_talks(self, segments: Mapping[Key, Iterable[str]]) -> dict[int, tuple[Key, ...]]:
        """Shard → the segments (or layers) that speak to it. segments: each with the parameters that it reads."""
        speaks = {key: self.shards_of(names) for key, names in segments.items()}
        return {s.index: tuple(key for key, shards in speaks.items() if s.index in shards) for s in self.shards}

    def take(self, shard: int, flat: Flat, out: Flat) -> Flat:
        """Copy one shard's elements of the whole space into its own buffer, float32[its size]."""
        for piece in self._by_number[shard].pieces:
            out[piece.at : piece.at + piece.size] = flat[piece.start : piece.stop]
        return out

    def put(self, shard: int, values: Flat, flat: Flat) -> None:
        """Copy one shard's buffer into the whole space: the inverse of `take`."""
        for piece in self._by_number[shard].pieces:
            flat[piece.start : piece.stop] = values[piece.at : piece.at + piece.size]

    def split(self, flat: Flat) -> list[Flat]:
        """All shards' buffers, as new arrays."""
        self.space.check(flat)
        return [self.take(shard.index, flat, np.empty(shard.size, np.float32)) for shard in self.shards]

    def join(self, buffers: Sequence[Flat], out: Flat | None = None) -> Flat:
        """The whole space from all shards' buffers, in order."""
        flat = np.empty(self.space.size, np.float32) if out is None else out
        for shard, values in zip(self.shards, buffers, strict=True):
            self.put(shard.index, values, flat)
        return flat


def cut(space: Space, count: int, policy: str = "equal") -> Sharding:
    """Cut a space into `count` shards, none of them empty. Raises PlanError for what cannot be cut so."""
    if policy not in POLICIES:
        raise PlanError(f"there is no way {policy!r} to cut parameters into shards; take one of {', '.join(POLICIES)}")
    if count < 1:
        raise PlanError(f"shards = {count}: at least one shard must hold the parameters")
    # An equal cut could go through a parameter, but nobody who wrote more shards than tensors meant to.
    if count > len(space.entries) or count > space.size:
        raise PlanError(
            f"shards = {count}, but the model has only {len(space.entries)} parameter tensors of {space.size:,} elements;"
            f" take at most {min(len(space.entries), space.size)} shards"
        )
    chosen = {"equal": _equal, "greedy": _greedy, "round-robin": _round_robin}[policy](space, count)
    return Sharding(space, policy, (_shard(space, index, runs) for index, runs in enumerate(chosen)))


def cut_segments(
    space: Space, segments: Sequence[Sequence[str]], count: int, policy: str = "equal"
) -> tuple[Sharding, tuple[Sharding, ...]]:
    """Cut a space into `count` shards, none of which holds parameters of two segments: that of the job, and that of each segment
    with its own space, whose buffers and parts are the same. segments: the parameters of each, all of them together.

    Each segment gets one shard, and the others go where shards are largest. Raises PlanError for what cannot be cut so.
    """
    if len(segments) == 1:
        return (whole := cut(space, count, policy)), (whole,)
    if not all(segments):
        raise PlanError(
            "a node of each model replica would have no parameters to train: cut the model over fewer nodes"
        )
    if count < len(segments):
        raise PlanError(
            f"shards = {count}, but a model replica has {len(segments)} segments, each of which speaks to shards of its own:"
            f" take at least {len(segments)} shards"
        )
    spaces = [space.only(names) for names in segments]
    shards: list[ShardRange] = []
    own: list[list[ShardRange]] = []
    for part, number in zip(spaces, _dealt(space, spaces, count), strict=True):
        found = cut(part, number, policy).shards
        own.append([replace(shard, index=len(shards) + n) for n, shard in enumerate(found)])
        shards += [_lifted(shard, part, space) for shard in own[-1]]
    homes = [number for number, held in enumerate(own) for _ in held]
    return Sharding(space, policy, shards, homes), tuple(
        Sharding(part, policy, held, homes) for part, held in zip(spaces, own, strict=True)
    )


def _dealt(space: Space, spaces: Sequence[Space], count: int) -> list[int]:
    """How many of the shards each segment gets."""
    most = [min(len(part.entries), part.size) for part in spaces]
    if count > sum(most):
        raise PlanError(
            f"shards = {count}, but the model has only {len(space.entries)} parameter tensors of {space.size:,} elements;"
            f" take at most {sum(most)} shards"
        )
    numbers = [1] * len(spaces)
    while sum(numbers) < count:
        free = [n for n in range(len(spaces)) if numbers[n] < most[n]]
        numbers[max(free, key=lambda n: (spaces[n].size / numbers[n], -n))] += 1
    return numbers


def _lifted(shard: ShardRange, part: Space, space: Space) -> ShardRange:
    """A segment's shard, in the space of all parameters."""
    entries = [space.index(entry.name) for entry in part.entries]
    shift = [space.entries[there].start - entry.start for there, entry in zip(entries, part.entries, strict=True)]
    pieces = [Piece(entries[p.entry], p.start + shift[p.entry], p.stop + shift[p.entry], p.at) for p in shard.pieces]
    parts = [replace(p, entries=tuple(entries[entry] for entry in p.entries)) for p in shard.parts]
    return replace(shard, pieces=tuple(pieces), parts=tuple(parts))


Runs = list[list[tuple[int, int, int]]]
"""Per shard (entry, start, stop), in graph order."""


def _equal(space: Space, count: int) -> Runs:
    bounds = [index * space.size // count for index in range(count + 1)]
    found: Runs = []
    for start, stop in pairwise(bounds):
        overlaps = ((i, max(e.start, start), min(e.stop, stop)) for i, e in enumerate(space.entries))
        found.append([(i, low, high) for i, low, high in overlaps if low < high])
    return found


def _greedy(space: Space, count: int) -> Runs:
    found: Runs = [[] for _ in range(count)]
    load = [0] * count
    for index in sorted(range(len(space.entries)), key=lambda i: (-space.entries[i].size, i)):
        least = load.index(min(load))
        entry = space.entries[index]
        found[least].append((index, entry.start, entry.stop))
        load[least] += entry.size
    return [sorted(runs) for runs in found]


def _round_robin(space: Space, count: int) -> Runs:
    found: Runs = [[] for _ in range(count)]
    for index, entry in enumerate(space.entries):
        found[index % count].append((index, entry.start, entry.stop))
    return found


def _shard(space: Space, index: int, runs: list[tuple[int, int, int]]) -> ShardRange:
    pieces, at = [], 0
    decay: list[tuple[int, int, bool]] = []
    for entry, start, stop in runs:
        pieces.append(Piece(entry, start, stop, at))
        decays, end = space.entries[entry].decay, at + stop - start
        if decay and decay[-1][2] == decays:
            decay[-1] = (decay[-1][0], end, decays)
        else:
            decay.append((at, end, decays))
        at = end
    return ShardRange(index, at, tuple(pieces), tuple(_parts(space, pieces)), tuple(decay))


def _parts(space: Space, pieces: Sequence[Piece]) -> Iterator[Part]:
    """Pieces joined until they are worth a message; a large one cut evenly."""
    waiting: list[Piece] = []
    index = 0
    for piece in pieces:
        waiting.append(piece)
        size = sum(p.size for p in waiting)
        if size < PART_ELEMENTS_MIN and piece is not pieces[-1]:
            continue
        start, cuts = waiting[0].at, -(-size // PART_ELEMENTS_MAX)
        for n in range(cuts):
            low, high = start + n * size // cuts, start + (n + 1) * size // cuts
            entries = tuple(p.entry for p in waiting if p.at < high and low < p.at + p.size)
            yield Part(index, low, high, entries, min(space.entries[e].needed for e in entries))
            index += 1
        waiting = []
