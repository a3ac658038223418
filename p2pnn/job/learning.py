"""The watchdog of a run that trains: "not learning", and why, from what its nodes tell with their progress. Pure.

A compute process looks now and then at gradients and activations of its own (`executor.looks`); `Streaks` says which of them have
been zero in every look for long. A shard counts how many pushes of a worker in a row were zero. The coordinator's `Learning`
makes of these, and of the losses, what a person is told, each thing once:

- zero gradients: a parameter's gradient is zero, on all model replicas, in a run that has not learned;
- dead activations: all outputs of a rectifier are zero;
- flat loss: after an epoch, of at least STEPS_MIN and at most STEPS_MAX steps behind the warm-up, no stretch of WINDOW_STEPS has
  had a mean loss below that of the first FIRST_STEPS steps by DROP_MIN of it. Not in a run that began elsewhere than at drawn
  parameters, where the loss may be as low as it gets;
- an idle worker: its pushes are zero while others' are not, or refused, or none come while PUSHES_MIN come of each other worker;
- a worker that was set aside, and one whose loss is no number. (Where no worker's is, the run ends with a sentence.)

All limits are on the calm side: a warning that normal runs give is read by nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from p2pnn.job.plan import Plan
from p2pnn.job.script import Health, Progress, ShardReport
from p2pnn.job.spec import JobSpec
from p2pnn.model.graph import Graph

LOOKS_MIN: Final = 5
"""Looks in a row in which something must be zero, over at least REST_STEPS_MIN steps."""

REST_STEPS_MIN: Final = 20

FIRST_STEPS: Final = 20
WINDOW_STEPS: Final = 50
STEPS_MIN: Final = 200
STEPS_MAX: Final = 1_000
DROP_MIN: Final = 0.01

LEARNED: Final = 0.5
"""A loss below this share of the first says that the run learns: gradients may vanish then because nothing is wrong any more."""

PUSHES_MIN: Final = 50
SILENT_S_MIN: Final = 5.0
"""A worker is idle that has not contributed for so many pushes of each other worker, and for so long."""

ZERO_PUSHES_MIN: Final = 20
NAMES_MAX: Final = 4

_REFUSED: Final = {
    "NOT_FINITE": "NaN or infinite elements",
    "RUNAWAY": "far larger than those before",
    "SHAPE": "of another size than the shard",
    "AHEAD": "based on parameters that do not exist yet",
    "TOO_STALE": "based on parameters that are too old",
    "LATE": "too late for their step",
}


class Streaks:
    """Of some things with numbers: which were at rest in every look for long."""

    def __init__(self) -> None:
        self._rest: dict[int, tuple[int, int, int]] = {}  # the first and the last step of it, and looks

    def look(self, what: int, rests: bool, step: int) -> None:
        """It rests, or moves, in this step."""
        if not rests:
            self._rest.pop(what, None)
            return
        first, _, looks = self._rest.get(what, (step, step, 0))
        self._rest[what] = first, step, looks + 1

    def lasting(self) -> dict[int, int]:
        """Those that have been at rest for long, and since which step."""
        return {
            what: first
            for what, (first, last, looks) in self._rest.items()
            if looks >= LOOKS_MIN and last - first >= REST_STEPS_MIN
        }


class Learning:
    """One start of a run, as its coordinator sees it. step: the run's when it began here. `now` in seconds."""

    def __init__(self, spec: JobSpec, plan: Plan | None = None, step: int = 0) -> None:
        self._spec = spec
        self._first_step = self._step = step
        names = [share.name for share in plan.nodes] if plan is not None else []
        replicas = plan.replicas if plan is not None else ()
        self._nodes = [tuple(names[node] for node in replica.nodes) for replica in replicas]
        self._workers = list(map("+".join, self._nodes))
        self._copies = max(1, len(replicas))
        self._health: dict[str, Health] = {}
        self._window = (0.0, 0)
        self._windows = 0
        self._loss = math.nan  # the mean of the last full window
        self._learned = step > 0 or bool(spec.initial)
        self._shards: dict[int, ShardReport] = {}
        self._contributed: dict[int, tuple[int, int, int, float]] = {}  # taken, taken of all, refused, and when
        self._gone: set[str] = set()
        self._computing = {name for nodes in self._nodes for name in nodes}
        self._told: set[tuple[str, object]] = set()

    def without(self, node: str) -> None:
        """A node takes part no more: nothing is expected of a worker that it computed for, and what that saw speaks for the first
        steps alone."""
        self._gone.add(node)
        here = [nodes for nodes in self._nodes if self._gone.isdisjoint(nodes)]
        self._copies = max(1, len(here))
        self._computing = {name for nodes in here for name in nodes}
        self._health = {name: self._of_now(name, health) for name, health in self._health.items()}

    def _of_now(self, node: str, health: Health) -> Health:
        return health if not self._gone or node in self._computing else Health(health.begun)

    def add(self, node: str, progress: Progress, step: int, now: float) -> list[str]:
        """A node has told its progress; step: how far the run is. What is to be said of that, in sentences."""
        self._step = max(self._step, step)
        if progress.health is not None:
            self._health[node] = self._of_now(node, progress.health)
        self._add_losses(*progress.losses)
        for report in progress.served:
            self._shards[report.shard] = report
        found = [*self._of_nodes(), *self._of_loss()]
        if self._shards and self._workers:
            found += self._of_workers(now)
        fresh = {key: text for key, text in found if key not in self._told}
        self._told |= fresh.keys()
        return list(fresh.values())

    # the loss

    def _first(self) -> tuple[float, int]:
        """Mean loss and rows of the first steps, over all nodes."""
        total = math.fsum(health.begun[0] for health in self._health.values())
        rows = sum(health.begun[1] for health in self._health.values())
        return (total / rows if rows else math.nan), rows

    def _add_losses(self, loss: float, rows: int) -> None:
        first, begun = self._first()
        batch = self._spec.batch_size
        if begun < FIRST_STEPS * batch / 2 or self._step - self._first_step < 2 * FIRST_STEPS:
            return  # half will do: a worker may leave steps out, and all have told of theirs by then
        total, count = self._window[0] + loss, self._window[1] + rows
        self._window = total, count
        if count < WINDOW_STEPS * batch:
            return
        self._loss, self._window, self._windows = total / count, (0.0, 0), self._windows + 1
        self._learned |= self._loss < first - DROP_MIN * abs(first)

    def _of_loss(self) -> Iterator[tuple[tuple[str, object], str]]:
        done = self._step - self._first_step
        wanted = min(STEPS_MAX, max(STEPS_MIN, self._spec.steps_per_epoch)) + self._spec.optimizer.warmup_steps
        if self._learned or self._windows < 2 or done < wanted:
            return
        first, now = self._first()[0], self._loss
        if not self._spec.optimizer.rate:
            why = f"the loss stays at {now:.4g}, since the learning rate is 0"
        elif now > first + 0.1 * abs(first):
            why = f"the loss has risen from {first:.4g} to {now:.4g} over {done:,} steps; lower the learning rate"
        else:
            why = (
                f"the loss is {now:.4g} after {done:,} steps, as at the start ({first:.4g}); try another learning rate, and look"
                " whether labels belong to their rows"
            )
        yield ("loss", ""), f"not learning: {why}"

    # what nodes see of gradients and activations

    def _of_nodes(self) -> Iterator[tuple[tuple[str, object], str]]:
        graph = self._spec.graph
        dead = {op: since for health in self._health.values() for op, since in health.dead.items()}
        for op, since in sorted(dead.items()):
            if 0 <= op < len(graph.ops):
                yield (
                    ("dead", op),
                    f"not learning: dead activations: all outputs of {rectifier(graph, op)} have been zero since step"
                    f" {since + 1:,}; lower the learning rate, look at its bias, or scale the data",
                )
        yield from self._of_gradients()
        for node, health in self._health.items():
            if health.not_finite >= 0:
                yield (
                    ("loss", node),
                    f"the loss on node {node} is NaN or infinite since step {health.not_finite + 1:,}; the parameter server"
                    " refuses such gradients: look at that node's data, or lower the learning rate",
                )

    def _of_gradients(self) -> Iterator[tuple[tuple[str, object], str]]:
        if self._loss < LEARNED * self._first()[0]:
            return
        parameters = self._spec.graph.parameters
        still = Counter(index for health in self._health.values() for index in health.still)
        new = sorted(
            index
            for index, copies in still.items()
            if copies >= self._copies and 0 <= index < len(parameters) and ("gradient", index) not in self._told
        )
        if not new:
            return
        since = max(health.still.get(index, 0) for health in self._health.values() for index in new)
        shown = ", ".join(parameters[index].name for index in new[:NAMES_MAX])
        more = f" and {len(new) - NAMES_MAX} more" if len(new) > NAMES_MAX else ""
        all_of_them = "all parameters" if len(new) == len(parameters) else f"{shown}{more}"
        text = (
            f"not learning: zero gradients: those of {all_of_them} have been zero since step {since + 1:,}; look whether they"
            " start at zero, or lie before dead activations"
        )
        self._told |= {("gradient", index) for index in new}
        yield ("gradients", tuple(new)), text

    # what shards see of workers

    def _of_workers(self, now: float) -> Iterator[tuple[tuple[str, object], str]]:
        reports = self._shards.values()
        aside = {worker for report in reports for worker in report.set_aside}
        for worker in sorted(aside):
            yield (
                ("aside", worker),
                f"worker {self._name(worker)} is set aside, and the run goes on without it: its pushes were refused"
                f"{self._reasons(worker)}",
            )
        everyone = range(len(self._workers))
        here = [worker for worker in everyone if self._gone.isdisjoint(self._nodes[worker])]
        zeros = [min((report.zeros.get(worker, 0) for report in reports), default=0) for worker in everyone]
        taken = [min((report.taken.get(worker, 0) for report in reports), default=0) for worker in everyone]
        refused = [max(sum(n for who, _, n in r.refused if who == worker) for r in reports) for worker in everyone]
        least = min((zeros[worker] for worker in here), default=0)
        for worker in here:
            if worker in aside:
                continue
            if zeros[worker] >= ZERO_PUSHES_MIN and least < zeros[worker] // 2:
                yield ("idle", worker), self._idle(worker, f"its last {zeros[worker]:,} pushes were all zero")
            before, all_before, refused_before, since = self._contributed.get(worker, (-1, 0, 0, 0.0))
            if taken[worker] > before:
                self._contributed[worker] = taken[worker], sum(taken), refused[worker], now
                continue
            others = sum(taken) - all_before
            if others < PUSHES_MIN * (len(here) - 1) or now - since < SILENT_S_MIN or not self._is_awaited(others):
                continue
            bad = refused[worker] - refused_before
            why = f"none came while the others made {others:,} pushes: it is stuck, or very slow"
            if bad:
                why = f"{bad:,} of its pushes were refused since the last that counted{self._reasons(worker)}"
            yield ("idle", worker), self._idle(worker, why)

    def _is_awaited(self, others: int) -> bool:
        """Whether others than the one that trains alone for the warm start may push."""
        data = self._spec.data
        made = min((report.version for report in self._shards.values()), default=0)
        return others > 0 and (data is None or made >= data.warm_start + PUSHES_MIN * (len(self._workers) - 1))

    def _idle(self, worker: int, why: str) -> str:
        return f"worker {self._name(worker)} contributes nothing: {why}; look at that node and its data"

    def _reasons(self, worker: int) -> str:
        whys: Iterable[str] = {
            why for report in self._shards.values() for who, why, _ in report.refused if who == worker
        }
        found = sorted(_REFUSED.get(why, why.lower().replace("_", " ")) for why in whys if why != "SET_ASIDE")
        return f" ({', '.join(found)})" if found else ""

    def _name(self, worker: int) -> str:
        return self._workers[worker] if 0 <= worker < len(self._workers) else f"number {worker}"


def rectifier(graph: Graph, op: int) -> str:
    """`relu_1 behind fc1`: a rectifier by its own name, and by the layer with parameters that it follows."""
    maker = {value: number for number, made in enumerate(graph.ops) for value in made.outputs}
    parameters = {parameter.name for parameter in graph.parameters}
    at = op
    while True:
        layers = [name.rpartition("/")[0] for name in graph.ops[at].inputs if name in parameters]
        if layer := next(filter(None, layers), ""):
            return f"{graph.ops[op].name} behind {layer}"
        before = maker.get(graph.ops[at].inputs[0]) if graph.ops[at].inputs else None
        if before is None or before >= at:
            return graph.ops[op].name
        at = before
