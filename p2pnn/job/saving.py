"""When a checkpoint counts: each part verified on the node that wrote it and on a buddy.

A buddy is the next living node of the plan, or any other member; where there is nobody else, one copy has to do. A buddy
that fails is replaced by the next candidate; where the last has failed, the one copy has to do as well, with a warning: it is
better than none, unless the node that wrote it is lost. The same holds for data that only one node has: no checkpoint counts
before that has its second copy, because a run cannot go on without its data either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pnn.job.actions import KeepBlobs
from p2pnn.job.checkpoint import Manifest
from p2pnn.types import BlobId, NodeId

COPY_ATTEMPTS: Final = 3

KEEP_S: Final = 600.0
KEEP_BYTES_PER_S: Final = 1e6
"""A buddy has so long for a copy, and longer for a large one; then another is asked."""

CHUNK_BYTES: Final = 8 << 20
"""What a data blob is taken for, whose size is not known here."""

REQUESTS_PER_TERM: Final = 1 << 20
REQUESTS_PER_START: Final = 1 << 44
"""Numbers of requests, so that a late answer to an earlier start of the job, or to one who coordinated it in an earlier term, is
none to this one."""


@dataclass(frozen=True, slots=True)
class Complete:
    """A checkpoint that counts. best: it holds the best epoch so far. warnings: one clause per part with one copy only."""

    manifest: Manifest
    best: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Torn:
    """A checkpoint that will never count: a part of it was on a lost node alone. error: one clause. best: as of Complete."""

    manifest: Manifest
    error: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class DataAlone:
    """Data stays on one node only; error: one clause."""

    error: str


@dataclass(slots=True)
class _Saving:
    manifest: Manifest
    best: bool
    writers: tuple[int, ...]
    pending: set[int] = field(default_factory=set)
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Copy:
    blobs: tuple[BlobId, ...]
    source: NodeId
    node: NodeId
    saving: _Saving | None
    tried: frozenset[NodeId]
    size: int
    due: float


class Saver:
    """Pure. nodes: the plan's, in its order, set when the plan is known. members: name by id of the living, kept up to date
    by the owner. start: how many starts the job has had; term: in which this one was taken over, or 0. now: the time, kept by
    the owner.

    Take `requests` and `next_outcome` after each call.
    """

    def __init__(self, members: dict[NodeId, str], spec: BlobId, start: int, term: int) -> None:
        self.nodes: list[NodeId] = []
        self.now = 0.0
        self.requests: deque[KeepBlobs] = deque()
        self._members = members
        self._spec = spec
        self._number = start * REQUESTS_PER_START + term * REQUESTS_PER_TERM
        self._copies: dict[int, _Copy] = {}
        self._savings: list[_Saving] = []
        self._outcomes: deque[Complete | Torn | DataAlone] = deque()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint still waits for its copies."""
        return bool(self._savings)

    @property
    def waiting(self) -> tuple[tuple[Manifest, bool], ...]:
        """The checkpoints that wait for their copies, and whether each holds the best epoch; oldest first."""
        return tuple((saving.manifest, saving.best) for saving in self._savings)

    @property
    def writers(self) -> tuple[tuple[int, ...], ...]:
        """For each of `waiting`: which node of the plan wrote each part."""
        return tuple(saving.writers for saving in self._savings)

    def save(self, manifest: Manifest, *, best: bool, writers: Sequence[int] = ()) -> None:
        """All parts were written: have each copied to a buddy. writers: which node of the plan wrote each part; () for part i by
        node i."""
        saving = _Saving(manifest, best, tuple(writers) or tuple(range(len(manifest.parts))))
        self._savings.append(saving)
        for part, writer in zip(manifest.parts, saving.writers, strict=True):
            self._copy((part.blob, self._spec), self.nodes[writer], saving, frozenset(), part.size)
        self._settle()

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data that only `source` is known to hold copied to another node."""
        self._copy((*blobs, self._spec), source, None, frozenset(), len(blobs) * CHUNK_BYTES)

    def kept(self, node: NodeId, request: int, error: str) -> None:
        """A buddy has verified its copy, or could not; what was not asked of `node` is ignored."""
        copy = self._copies.get(request)
        if copy is None or copy.node != node:
            return
        del self._copies[request]
        if copy.saving:
            copy.saving.pending.discard(request)
        if error:
            self._try_another(copy, error)
        self._settle()

    def member_failed(self, node: NodeId) -> None:
        """What was asked of a lost node is asked of another."""
        for request in [r for r, copy in self._copies.items() if copy.node == node]:
            self.kept(node, request, "it is gone")

    def get_timer(self) -> float | None:
        """When handle_timer is to be called."""
        return min((copy.due for copy in self._copies.values()), default=None)

    def handle_timer(self) -> None:
        """What a buddy has not answered in time is asked of another."""
        for request, copy in list(self._copies.items()):
            if copy.due <= self.now:
                self.kept(copy.node, request, "it did not answer in time")

    def next_outcome(self) -> Complete | Torn | DataAlone | None:
        return self._outcomes.popleft() if self._outcomes else None

    def _copy(
        self, blobs: tuple[BlobId, ...], source: NodeId, saving: _Saving | None, tried: frozenset[NodeId], size: int
    ) -> bool:
        buddy = self._buddy(source, tried)
        if buddy is None:
            return False
        self._number += 1
        due = self.now + KEEP_S + size / KEEP_BYTES_PER_S
        self._copies[self._number] = _Copy(blobs, source, buddy, saving, tried, size, due)
        if saving:
            saving.pending.add(self._number)
        self.requests.append(KeepBlobs(buddy, self._number, blobs, source))
        return True

    def _try_another(self, copy: _Copy, error: str) -> None:
        tried = copy.tried | {copy.node}
        if len(tried) < COPY_ATTEMPTS and self._copy(copy.blobs, copy.source, copy.saving, tried, copy.size):
            return
        text = f"only one copy, on node {self._name(copy.source)}, and none on node {self._name(copy.node)}: {error}"
        if copy.saving is None:
            self._outcomes.append(DataAlone(text))
        elif copy.source not in self._members:
            self._drop(
                copy.saving, f"node {self._name(copy.source)} is lost, and nobody else has its part of it: {error}"
            )
        else:
            copy.saving.warnings += (text,)

    def _drop(self, saving: _Saving, error: str) -> None:
        self._copies = {request: copy for request, copy in self._copies.items() if copy.saving is not saving}
        if saving in self._savings:
            self._savings.remove(saving)
            self._outcomes.append(Torn(saving.manifest, error, saving.best))

    def _name(self, node: NodeId) -> str:
        return self._members.get(node, node[:8])

    def _buddy(self, source: NodeId, tried: frozenset[NodeId]) -> NodeId | None:
        after = self.nodes.index(source) + 1 if source in self.nodes else 0
        ring = self.nodes[after:] + self.nodes[:after]
        others = sorted(set(self._members) - set(self.nodes))
        candidates = (n for n in (*ring, *others) if n != source and n in self._members and n not in tried)
        return next(candidates, None)

    def _settle(self) -> None:
        """Checkpoints complete in the order in which they were written, and after the data."""
        if any(copy.saving is None for copy in self._copies.values()):
            return
        while self._savings and not self._savings[0].pending:
            saving = self._savings.pop(0)
            self._outcomes.append(Complete(saving.manifest, saving.best, saving.warnings))
