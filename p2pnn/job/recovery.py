"""From the loss of a node to what the job goes on from, without anybody's help.

The generation that lost a node is over: what was on its way is gone, on every node alike. Then:

1. every living member is asked which cuts of that generation it holds in memory (`job.snapshots`);
2. a node that was lost with its link may be dead, or only cut off: its return or its death is waited for, but not for long;
3. the newest cut of which somebody holds every part is written into the holders' stores, part by part, as a checkpoint. Where
   no cut is whole, or a checkpoint is newer, that checkpoint it is;
4. the owner plans again over who is there, and starts the next generation from it like from any checkpoint.

A cut knows no epoch. One that lies exactly at the end of an epoch counts as before that epoch's evaluation, which is then
simply made again; history and best value are taken back to where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgspec

from p2pnn.job.actions import AskCuts, MakePart
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.ledger import Ledger
from p2pnn.job.monitor import Monitor
from p2pnn.job.records import KEPT_CHECKPOINTS
from p2pnn.job.snapshots import newest_complete
from p2pnn.job.spec import JobSpec
from p2pnn.types import NodeId

ANSWER_S: Final = 2.0
"""Members answer at once from memory; who does not is busy, hung or gone."""

MAKE_S: Final = 60.0

LINK_S: Final = 3.0
"""A broken link is dialled again within a second; a dead process is proved so within half of one."""

FRUITLESS_MAX: Final = 3
"""Starts in a row that end before the run got further than where they began."""

KILLS_MAX: Final = 2
"""How often compute processes may be killed before a job fails: memory that did not suffice three times will not."""

PARKED_S: Final = 10.0
"""A parked job looks again so often whether there is memory now; it does at once when a node comes."""

FREED_S: Final = 1.0
"""For the first time so soon: once it is parked, members give up the memory of its cuts."""


class Loss(IntEnum):
    """Why a part says that it cannot go on (`wire.messages.JobFailed.kind`)."""

    FINAL = 0
    KILLED = 1
    UNREACHABLE = 2


class Attempts:
    """How often a job may be started again, and without whom. Pure. step: where its first start began.

    shunned: nodes that another node of the job cannot reach, though both live; it goes on without them.
    """

    def __init__(self, step: int) -> None:
        self.shunned: frozenset[NodeId] = frozenset()
        self._apart: frozenset[NodeId] = frozenset()
        self._from = step
        self._fruitless = self._kills = 0

    def killed(self) -> str:
        """A compute process was killed; why that is too often, as a clause, or empty."""
        self._kills += 1
        if self._kills <= KILLS_MAX:
            return ""
        return f"it was that for the {self._kills}. time, so the job is not started again"

    def apart(self, node: NodeId, peer: NodeId, coordinator: NodeId) -> None:
        """A start was lost because one node does not reach another. The second time in a row one of them is shunned; the one that
        coordinates is not."""
        pair = frozenset((node, peer))
        if pair == self._apart:
            self.shunned |= {peer if node == coordinator else max(pair - {coordinator})}
        self._apart = pair

    def ended(self, step: int) -> str:
        """A start was lost, and the next one would begin at this step; why there is none, as a clause, or empty."""
        self._fruitless = 0 if step > self._from else self._fruitless + 1
        self._from = step
        return (
            f"it was started {FRUITLESS_MAX} times without getting further" if self._fruitless >= FRUITLESS_MAX else ""
        )


@dataclass(slots=True)
class Lost:
    """What there was to lose. generation: of the start that ran; parts: nodes of its plan, 0 where no cuts are taken; cut: its
    `job.plan.cut`. reached: the step that it is known to have reached; limit: cuts behind this step cannot be gone on from.
    lacks: what a node needs to begin could not be had. least: it may have reached more, of which nobody told: it did not end
    where it was to, and nobody can be asked."""

    text: str
    generation: int
    parts: int
    cut: str
    reached: int
    since: float
    limit: int | None = None
    lacks: bool = False
    least: bool = False


class Recovery:
    """Pure; `now` in seconds. Give it facts, ask `finished`; then `manifest` is what to go on from (None: the newest checkpoint,
    or the beginning). requests: numbers for questions, none of which an earlier recovery of the job has used."""

    def __init__(
        self,
        ledger: Ledger,
        spec: JobSpec,
        lost: Lost,
        away: Mapping[NodeId, str],
        now: float,
        requests: Iterator[int],
    ) -> None:
        self.lost = lost
        self.manifest: Manifest | None = None
        self._ledger = ledger
        self._spec = spec
        self._away = dict(away)  # who is neither known to be gone nor back
        self._held: dict[NodeId, list[tuple[int, int]]] = {}
        self._asked: dict[NodeId, tuple[int, float]] = {}  # request, and until when its answer is waited for
        self._requests = requests
        self._making: dict[int, tuple[int, NodeId]] = {}
        self._parts: dict[int, Part] = {}
        self._step = -1
        self._due = 0.0
        self._link_due = now + LINK_S
        if spec.data is not None:
            lost.parts = 0  # no cuts are taken: parameters lie on shards, and the newest checkpoint is gone on from
        else:
            lost.least = False  # who holds a cut says how far its part was
        if spec.kind == "train" and lost.parts:
            for node in ledger.members:
                self._ask(node, now)

    @property
    def finished(self) -> bool:
        """Nothing more is waited for."""
        return not self._away and not self._asked and not self._making

    def cuts(self, node: NodeId, request: int, step: int, held: Sequence[tuple[int, int]], now: float) -> None:
        """A member's answer: (index, step) of what it holds, and how far its own part was. One to another question is ignored."""
        if self._asked.get(node, (-1, 0.0))[0] == request:
            del self._asked[node]
            self.lost.reached = max(self.lost.reached, step)
            self._held[node] = list(held)
            self._decide(now)

    def made(self, node: NodeId, request: int, part: Part | None, now: float) -> None:
        """A part lies in a holder's store; None where it could not be written."""
        index, asked = self._making.get(request, (-1, node))
        if index < 0 or asked != node:
            return
        del self._making[request]
        if part is None:
            self._give_up(node, now)
            return
        self._parts[index] = part
        if len(self._parts) == self.lost.parts:
            self.manifest = self._manifest()

    def member_lost(self, node: NodeId, reason: str, now: float) -> None:
        """The link to a member broke; it may be gone."""
        self._away[node] = reason
        self._link_due = now + LINK_S
        self._without(node, now)

    def member_gone(self, node: NodeId, now: float) -> None:
        """A member is dead or has left."""
        self._away.pop(node, None)
        self._without(node, now)

    def member_joined(self, node: NodeId, now: float) -> None:
        """A member came, or is back: it may hold what is missing."""
        self._away.pop(node, None)
        if self._spec.kind == "train" and self.lost.parts and not self._making and self.manifest is None:
            self._ask(node, now)

    def get_timer(self) -> float | None:
        times = [
            *(due for _, due in self._asked.values()),
            *([self._link_due] if self._away else []),
            *([self._due] if self._making else []),
        ]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Who has not answered is not waited for any longer."""
        if self._away and self._link_due <= now:
            self._away.clear()
        for node in [node for node, (_, due) in self._asked.items() if due <= now]:
            del self._asked[node]
        if self._making and self._due <= now:
            self._give_up(next(iter(self._making.values()))[1], now)
        self._decide(now)

    # --- how

    def _ask(self, node: NodeId, now: float) -> None:
        request = next(self._requests)
        self._asked[node] = (request, now + ANSWER_S)
        self._ledger.do(AskCuts(node, self.lost.generation, request))

    def _without(self, node: NodeId, now: float) -> None:
        self._asked.pop(node, None)
        self._held.pop(node, None)
        if any(holder == node for _, holder in self._making.values()):
            self._give_up(node, now)
        self._decide(now)

    def _give_up(self, node: NodeId, now: float) -> None:
        """A holder does not deliver: choose again without it."""
        self._held.pop(node, None)
        self._making.clear()
        self._parts.clear()
        self._step = -1
        self._decide(now)

    def _decide(self, now: float) -> None:
        """Choose a cut once all have answered; while a node is away, only one that needs nothing of it."""
        if self._making or self._asked or self.manifest is not None or not self.lost.parts:
            return
        step = newest_complete(self._held, self.lost.parts, self.lost.limit)
        newest = self._ledger.record.newest
        if step is None or step <= (newest.step if newest else 0):
            return
        self._step = step
        for index in range(self.lost.parts):
            holder = next(node for node, held in self._held.items() if (index, step) in held)
            request = next(self._requests)
            self._making[request] = (index, holder)
            self._ledger.do(MakePart(holder, self.lost.generation, request, index, step))
        self._due = now + MAKE_S

    def _manifest(self) -> Manifest:
        epochs = (self._step - 1) // self._spec.steps_per_epoch
        best_value, best_epoch = monitored(self._spec, self._ledger, epochs)
        return Manifest(
            job=self._ledger.record.job,
            spec=self._ledger.record.spec,
            step=self._step,
            epoch=epochs,
            parts=tuple(self._parts[index] for index in range(self.lost.parts)),
            best_value=best_value,
            best_epoch=best_epoch,
            cut=self.lost.cut,
        )


def monitored(spec: JobSpec, ledger: Ledger, epochs: int) -> tuple[float | None, int]:
    """The best value and its epoch as they were after so many epochs."""
    monitor = Monitor(spec, None)
    for entry in ledger.record.history[:epochs]:
        monitor.take(int(entry["epoch"]), entry)
    return monitor.best_value, monitor.best_epoch


def taken_back(ledger: Ledger, manifest: Manifest | None) -> None:
    """Take the record back to what the run goes on from."""
    record = ledger.record
    epoch, step = (manifest.epoch, manifest.step) if manifest else (0, 0)
    kept = tuple(c for c in record.checkpoints if c.step < step)
    best = record.best if record.best is not None and record.best.epoch <= epoch else None
    ledger.record = msgspec.structs.replace(
        record,
        checkpoints=(*kept, manifest)[-KEPT_CHECKPOINTS:] if manifest else (),
        best=best,
        step=step,
        epoch=epoch,
        history=record.history[:epoch],
        results=(),
        predictions=None,
        stopped_early=False,
    )


def parked(ledger: Ledger, reason: str) -> str:
    """Why a job waits, with who is away of those that it ran on."""
    shares = ledger.record.plan.nodes if ledger.record.plan else ()
    away = [share.name for share in shares if share.node not in ledger.members]
    return f"parked: {reason}" + "".join(f"; node {name} is away" for name in away)


def told(lost: Lost, spec: JobSpec, names: Sequence[str], step: int, now: float) -> dict[str, Any]:
    """The event of a job that goes on: what was lost, from which step it went on over whom, and what that cost."""
    seconds = now - lost.since
    where, redone, more = f"over {', '.join(names)} after {seconds:.1f} s", 0, ""
    if spec.kind == "train":
        redone = max(0, lost.reached - step)
        where = f"from step {step:,} {where}"
        more = f"; {'at least ' * lost.least}{redone:,} step{'s' * (redone != 1)} redone"
        if lost.least and not redone:
            more = "; what was trained since then is redone"
    return {
        "text": f"{lost.text}: went on {where}{more}",
        "step": step,
        "redone": redone,
        "seconds": round(seconds, 3),
    }
