"""The runner: carries out what the segment machine decides, on arrays that it laid out once.

For each frame there is one array per value and per gradient that crosses a segment's border: in the arena where it crosses
between nodes, else in this process's memory. Programs are compiled per segment and mode; all modes share the arrays,
because a frame belongs to one micro-batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Array, Context, Edge, Engine, Look, Mode, Program
from p2pnn.errors import JobFailedError, PlanError
from p2pnn.executor.arena import Arena
from p2pnn.executor.feed import Feed
from p2pnn.executor.tally import Outputs, Sums
from p2pnn.executor.weights import Weights
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.model.graph import Value
from p2pnn.model.text import ports
from p2pnn.ps.allotment import Allotment
from p2pnn.train import rates
from p2pnn.train.frames import Layout, layout
from p2pnn.train.machine import Backward, Forward, Stage
from p2pnn.train.schedule import Routes


def modes(spec: JobSpec) -> tuple[Mode, ...]:
    """The modes that a job of this kind needs."""
    if spec.forward_only:
        return ("predict",)
    if spec.kind == "evaluate":
        return ("evaluate",)
    return ("train", "evaluate") if spec.validation or spec.test else ("train",)


class Runner:
    """Everything that one node computes in one start of a job. plan, routes: of its model replica alone, where there are several.

    on_gradient: in a data-parallel run, is called with a parameter when `Weights.gradient` has its gradient of a step, if that is
    before the step's last backward pass ends (`Engine.compile`).
    """

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        routes: Routes,
        engine: Engine,
        blobs: BlobStore,
        arena: Arena,
        allotment: Allotment,
    ) -> None:
        self._spec = spec
        self._loss_scale = allotment.loss_scale(spec.micro_batches)
        self._plan = plan
        self._routes = routes
        self._engine = engine
        self._rows = spec.rows_per_micro_batch
        self._layout: Layout = layout(spec.graph, plan, routes.node_index, self._rows)
        if self._layout.arena_bytes > arena.size:
            raise PlanError(f"the arena has {arena.size:,} bytes, but the plan takes {self._layout.arena_bytes:,}")
        self._arena = arena
        delay = plan.delays[routes.node_index] if plan.delays else 0
        self.weights = Weights(spec, routes, engine, delay, len(allotment.micro_batches(spec.micro_batches)))
        self._modes = modes(spec)
        names = {name for mode in self._modes for name in routes.modes[mode].inputs}
        self.feed = Feed(spec, engine, blobs, frozenset(names), allotment)
        self.outputs = Outputs(blobs)
        self._ports = ports(spec.graph) if spec.sampling is not None else None
        self._scores = b""
        self.on_gradient: Callable[[str], None] | None = None
        early = spec.data is not None and not spec.optimizer.clip_norm  # else the norm of all comes first
        self._programs = {
            (mode, task.position): engine.compile(
                spec.graph,
                task.ops,
                self.weights.tensors,
                rows=self._rows,
                frames=plan.frames,
                mode=mode,
                fuse=self.weights.fuse if mode == "train" else frozenset(),
                ready=self._gradient_ready if mode == "train" and early else None,
            )
            for mode in self._modes
            for task in routes.modes[mode].tasks
        }
        self._own_bytes = 0
        self._values: list[dict[str, Array]] = [self._lay_values(frame, names) for frame in range(plan.frames)]
        self._gradients: list[dict[Edge, Array]] = [self._lay_gradients(frame) for frame in range(plan.frames)]
        self._filled = [-1] * plan.frames
        # Rows are counted where the first loss is made (the first metric without one), so that sums over nodes are right.
        self._counted = next(iter((*spec.graph.losses, *(m.value for m in spec.graph.metrics))), "")

    @property
    def memory_bytes(self) -> int:
        """Everything that was allocated, arena included."""
        programs = sum(program.memory_bytes for program in self._programs.values())
        return self._layout.arena_bytes + self.weights.memory_bytes + self._own_bytes + programs

    def check_memory(self, taken: int) -> None:
        """Raise PlanError, with both figures, where this part takes more than the plan or the job allows."""
        share = self._plan.nodes[self._routes.node_index]
        for limit, whose in (  # the plan's figure is the job's own limit where that is lower
            (self._spec.memory_bytes_max, "the job's limit (--memory) is"),
            (share.memory_bytes_max, "this node has"),
        ):
            if 0 < limit < taken:
                raise PlanError(
                    f"this node's part of the model takes {taken:,} bytes, but {whose} {limit:,}; "
                    "use more nodes or a smaller batch"
                )

    def forward(self, action: Forward, stage: Stage, sums: Sums, look: Look | None = None) -> None:
        """One segment's forward pass; losses and metrics are added to `sums`. look: is shown what rectifiers make.

        Raises JobFailedError for a loss that is not a number.
        """
        task, m = action
        frame = m % self._plan.frames
        values = self._values[frame]
        if self._filled[frame] != m:
            self.feed.fill(stage, m, values, self._routes.modes[stage.mode].inputs)
            self._filled[frame] = m
        context = self._context(stage, m)
        program, versions = self._program(stage.mode, task.position), self.weights.versions
        lent = stage.mode == "train" and versions.lend(context.step)
        program.forward(frame, context, values, look)
        if lent:
            versions.lend(context.step)
        self._collect(task.ops, stage, context, values, sums)

    def take_scores(self) -> bytes:
        """Of the last Sample, where this node has them: float32[classes], little-endian; else nothing."""
        found, self._scores = self._scores, b""
        return found

    def backward(self, action: Backward, stage: Stage) -> None:
        """One segment's backward pass."""
        task, m = action
        frame = m % self._plan.frames
        context = self._context(stage, m)
        program = self._program(stage.mode, task.position)
        program.backward(frame, context, self._gradients[frame], index=stage.at(m)[1])

    def _gradient_ready(self, name: str) -> None:
        if self.on_gradient is not None:
            self.on_gradient(name)

    def _program(self, mode: Mode, position: int) -> Program:
        program = self._programs.get((mode, position))
        if program is None:
            raise JobFailedError(f"a job of kind {self._spec.kind} was asked to {mode}")
        return program

    def _context(self, stage: Stage, m: int) -> Context:
        spec, versions, rows = self._spec, self.weights.versions, self.feed.valid_rows(stage, m)
        step, index = self.feed.at(stage, m)
        if stage.mode != "train":
            return Context(spec.seed, step, index, rows, slot=versions.newest_slot)
        context = Context(spec.seed, step, index, rows, self._loss_scale, versions.slot(step))
        if not self.weights.fuse:
            return context
        rate = rates.rate(spec.optimizer, step, spec.steps)
        return replace(context, rate=rate, update=(versions.newest_slot, versions.next_slot))

    def _collect(
        self, ops: Sequence[int], stage: Stage, context: Context, values: dict[str, Array], sums: Sums
    ) -> None:
        """Losses, metrics or named outputs that these ops made."""
        graph, producer, rows = self._spec.graph, self._routes.flow.producer, context.rows
        mine = set(ops)
        if stage.tokens:
            if self._ports is not None and producer.get(self._ports.output) in mine:
                self._scores = self._at_last_token(self._ports.output, stage, values)
            return
        if stage.mode == "predict":
            described = {value.name: value for value in graph.values}
            for name, value in graph.outputs.items():
                if producer.get(value) in mine:
                    self.outputs.add(name, self._engine.export_value(described[value], values[value])[:rows])
            return
        for value in graph.losses:
            if producer.get(value) in mine:
                loss = float(values[value])
                if not math.isfinite(loss):
                    if stage.mode == "train" and self._spec.data is not None:
                        sums.finite = False
                        return  # the shards judge what this worker makes of it, and end the run where all workers do so
                    where = f"at step {context.step + 1}" if stage.mode == "train" else f"on the {stage.split} data"
                    what = "NaN" if math.isnan(loss) else "infinite"
                    raise JobFailedError(
                        f"the loss became {what} {where}; lower the learning rate, clip gradients or scale the data"
                    )
                sums.add_loss(loss, rows)
        if producer.get(self._counted, -1) in mine:
            sums.rows += rows
        for metric in graph.metrics:
            if producer.get(metric.value) in mine:
                sums.add_metric(metric.name, values[metric.value])

    def _at_last_token(self, name: str, stage: Stage, values: dict[str, Array]) -> bytes:
        described = next(value for value in self._spec.graph.values if value.name == name)
        scores = self._engine.export_value(described, values[name])[0, len(stage.tokens) - 1]
        return bytes(scores.astype("<f4").tobytes())

    # how arrays are laid out

    def _lay_values(self, frame: int, inputs: set[str]) -> dict[str, Array]:
        described = {v.name: v for v in (*self._spec.graph.inputs, *self._spec.graph.values)}
        crossing = {
            t.value: t.index for t in self._routes.transfers if self._touches(t.source, t.target) and not t.backward
        }
        names = dict.fromkeys(sorted(inputs))
        for program in self._programs.values():
            names.update(dict.fromkeys((*program.values_in, *program.values_out)))
        return {name: self._lay(described[name], crossing.get(name, -1), frame) for name in names}

    def _lay_gradients(self, frame: int) -> dict[Edge, Array]:
        described = {v.name: v for v in self._spec.graph.values}
        crossing = {
            (t.value, t.consumer): t.index
            for t in self._routes.transfers
            if self._touches(t.source, t.target) and t.backward
        }
        edges: dict[Edge, None] = {}
        for (mode, _), program in self._programs.items():
            if mode == "train":
                edges.update(dict.fromkeys((*program.gradients_in, *program.gradients_out)))
        return {edge: self._lay(described[edge[0]], crossing.get(edge, -1), frame) for edge in edges}

    def _touches(self, source: int, target: int) -> bool:
        return self._routes.node_index in (source, target)

    def _lay(self, value: Value, transfer: int, frame: int) -> Array:
        """An array in the arena for what crosses (`transfer` ≥ 0), else one of this process's own, zeroed."""
        shape = self._engine.shape(value, self._rows)
        if transfer >= 0:
            return self._arena.array(self._layout.place(transfer, frame)[0], shape, value.dtype)
        array = np.zeros(shape, value.dtype)
        self._own_bytes += array.nbytes
        return array
