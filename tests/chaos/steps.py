"""Steps as they are done, seen from outside without a message: in the rings of spans that executors share with their daemons.

A ring outlives its process as long as it is mapped here, so the last step before a kill is known exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from p2pnn.job.plan import Plan
from p2pnn.job.spans import HEAD_BYTES, RECORD, SPANS_MAX, Kind, Span
from p2pnn.job.spec import JobSpec
from p2pnn.train.frames import layout
from tests.chaos.mesh import Mesh, children

LOOK_S = 0.004


class Done(NamedTuple):
    """A node has updated its parameters for a step. at: the machine's monotonic clock. start: counts the executors seen."""

    at: float
    node: str
    step: int
    start: int


@dataclass
class Ring:
    """Of one executor, mapped here. offset: where in its memory the ring begins."""

    node: str
    start: int
    memory: mmap.mmap
    offset: int
    seen: int = 0

    def new(self) -> list[Span]:
        """The spans since the last call; those that were overwritten meanwhile are left out."""
        count = int.from_bytes(self.memory[self.offset : self.offset + 8], "little", signed=True)
        first = max(self.seen, count - SPANS_MAX + 1)
        self.seen = count
        found = []
        for number in range(first, count):
            at = self.offset + HEAD_BYTES + number % SPANS_MAX * RECORD.size
            found.append(Span(*RECORD.unpack_from(self.memory, at)))
        return found


class Steps:
    """What the executors of one job do. `async with Steps(mesh, job, spec, at) as steps:`; at: a node to ask for the plan."""

    def __init__(self, mesh: Mesh, job: str, spec: JobSpec) -> None:
        self.done: list[Done] = []
        self.writing = asyncio.Event()
        """A checkpoint's file is being written somewhere."""
        self._mesh, self._job, self._spec = mesh, job, spec
        self._rings: dict[int, Ring] = {}
        self._strange: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Steps:
        self._task = asyncio.ensure_future(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for ring in self._rings.values():
            ring.memory.close()

    @property
    def last(self) -> int:
        """The highest step that a node has done; −1 before the first."""
        return max((one.step for one in self.done), default=-1)

    @property
    def starts(self) -> int:
        return len(self._rings)

    def after(self, moment: float) -> list[Done]:
        return [one for one in self.done if one.at > moment]

    def gap_s(self, begin: float, end: float) -> float:
        """The longest time without a step between two moments."""
        times = [begin, *sorted(one.at for one in self.done if begin < one.at < end), end]
        return max(later - earlier for earlier, later in pairwise(times))

    def rate(self, begin: float, end: float) -> float:
        """Steps per second between two moments, by the node that did most."""
        counted: dict[str, int] = {}
        for one in self.done:
            if begin < one.at <= end:
                counted[one.node] = counted.get(one.node, 0) + 1
        return max(counted.values(), default=0) / (end - begin)

    async def _look(self) -> None:
        while True:
            for name, node in self._mesh.nodes.items():
                if node.alive:
                    for pid in children(node.process.pid):
                        if pid not in self._rings and self._strange.get(pid, 0) < 2000:
                            await self._open(name, pid)
                    with contextlib.suppress(OSError):
                        if any((node.folder / "blobs/temporary").iterdir()):
                            self.writing.set()
            for ring in self._rings.values():
                for span in ring.new():
                    if span.kind == Kind.UPDATE:
                        self.done.append(Done(span.end, ring.node, span.step, ring.start))
            await asyncio.sleep(LOOK_S)

    async def _open(self, name: str, pid: int) -> None:
        """Map the ring of a new process of this node, once the plan by which its memory is laid out is known."""
        self._strange[pid] = self._strange.get(pid, 0) + 1
        arena = next((path for path in descriptors(pid) if "p2pnn-arena" in target_of(path)), None)
        if arena is None:
            return
        found = await self._mesh.get(name, f"jobs/{self._job}")
        if not found or not found["plan"]:
            return
        plan = msgspec.convert(found["plan"], Plan)
        names = [share.name for share in plan.nodes]
        if name not in names:
            return
        places = layout(self._spec.graph, plan, names.index(name), self._spec.rows_per_micro_batch)
        with contextlib.suppress(OSError, ValueError), arena.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            ring = Ring(name, len(self._rings), memory, places.arena_bytes)
            if plausible(ring):
                self._rings[pid] = ring
            else:
                memory.close()


def descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []


def target_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def plausible(ring: Ring) -> bool:
    """Whether spans lie there already: the executor works, and by this plan."""
    if len(ring.memory) < ring.offset + HEAD_BYTES + SPANS_MAX * RECORD.size:
        return False
    count = int.from_bytes(ring.memory[ring.offset : ring.offset + 8], "little", signed=True)
    if not 0 < count < 1 << 40:
        return False
    first: Any = Span(*RECORD.unpack_from(ring.memory, ring.offset + HEAD_BYTES))
    return 0 < first.start <= first.end and 0 < first.kind < 64
