"""Small graphs for engine tests, built op by op, and a runner that executes them segment by segment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.engine.base import Context, Tensors
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.job.segment import segments
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Graph, Initializer, Metric, Op, Parameter, Value

Array = NDArray[Any]

RATE = 0.1
"""The learning rate of fused updates."""


class Build:
    """Collects a graph; every method returns the name of a value."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.parameters: list[Parameter] = []
        self.state: list[Parameter] = []
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self.known: dict[str, Value] = {}

    def input(self, *shape: int, dtype: str = "float32") -> str:
        value = Value(f"input{len(self.inputs)}", dtype, (BATCH, *shape))
        self.inputs.append(value)
        self.known[value.name] = value
        return value.name

    def parameter(self, *shape: int) -> str:
        return self._hold(self.parameters, "parameter", shape)

    def held(self, *shape: int) -> str:
        return self._hold(self.state, "state", shape)

    def _hold(self, into: list[Parameter], prefix: str, shape: tuple[int, ...]) -> str:
        name = f"{prefix}{len(into)}"
        into.append(Parameter(name, shape, Initializer("normal", scale=1.0)))
        self.known[name] = Value(name, "float32", shape)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        (name,) = self.parts(kind, *inputs, **attributes)
        return name

    def parts(self, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        """An op with one or several outputs."""
        name = f"{kind.lower()}{len(self.ops)}"
        known = [self.known[i] for i in inputs]
        canonical = ops.normalise(kind, name, attributes, known)
        made = ops.infer(Op(kind, name, inputs, (), canonical), known)
        names = [name if n == 0 else f"{name}.{n}" for n in range(len(made))]
        for output, (dtype, shape) in zip(names, made, strict=True):
            self.known[output] = Value(output, dtype, shape)
            self.values.append(self.known[output])
        self.ops.append(Op(kind, name, inputs, tuple(names), canonical))
        return names

    def conv(self, x: str, outputs: int, size: int, *, bias: bool = True, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        w = self.parameter(outputs, self.known[x].shape[1] // group, size, size)
        return self.op("Conv", x, w, *([self.parameter(outputs)] if bias else []), **attributes)

    def linear(self, x: str, outputs: int) -> str:
        return self.op("Gemm", x, self.parameter(outputs, self.known[x].shape[-1]), self.parameter(outputs))

    def norm(self, x: str) -> str:
        c = self.known[x].shape[1]
        return self.op("BatchNormalization", x, self.parameter(c), self.parameter(c), self.held(c), self.held(c))

    def layer_norm(self, x: str, axis: int = -1, *, bias: bool = True) -> str:
        shape = self.known[x].shape[axis:]
        held = [self.parameter(*shape) for _ in range(1 + bias)]
        return self.op("LayerNormalization", x, *held, axis=axis)

    def embed(self, *shape: int, rows: int = 10, width: tuple[int, ...] = (3,)) -> str:
        return self.op("Gather", self.parameter(rows, *width), self.input(*shape, dtype="int64"))

    def graph(self, outputs: dict[str, str], losses: Sequence[str] = (), metrics: Sequence[str] = ()) -> Graph:
        return Graph(
            tuple(self.inputs),
            tuple(self.parameters),
            tuple(self.state),
            tuple(self.ops),
            tuple(self.values),
            outputs,
            tuple(losses),
            tuple(Metric(f"metric{i}", "mean", m) for i, m in enumerate(metrics)),
        )

    def classify(self, scores: str) -> Graph:
        labels = self.input(dtype="int64")
        loss = self.op("SoftmaxCrossEntropyLoss", scores, labels)
        accuracy = self.op("Accuracy", scores, labels)
        return self.graph({"probability": self.op("Softmax", scores)}, [loss], [accuracy])


def batch(graph: Graph, rows: int, seed: int = 0, classes: int = 10) -> dict[str, Array]:
    """Random inputs in ONNX's layout."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for value in graph.inputs:
        shape = (rows, *value.shape[1:])
        if value.dtype == "int64":
            made[value.name] = rng.integers(0, classes, shape)
        else:
            drawn = rng.standard_normal(shape).astype(np.float32)
            made[value.name] = drawn > 0 if value.dtype == "bool" else drawn
    return made


def fill(engine: NumpyEngine, graph: Graph, tensors: Tensors, seed: int = 1, scale: float = 0.3) -> dict[str, Array]:
    """Random parameters (running variances positive); returns them in ONNX's layout."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    variances = {op.inputs[4] for op in graph.ops if op.kind == "BatchNormalization"}
    for p in (*graph.parameters, *graph.state):
        array = rng.standard_normal(p.shape) * scale
        made[p.name] = (np.abs(array) + 0.5 if p.name in variances else array).astype(np.float32)
        for into in (tensors.parameters, tensors.state):
            if p.name in into:
                into[p.name][...] = engine.import_parameter(graph, p.name, made[p.name])
    return made


class Run:
    """A graph cut by an assignment, each segment with its own program; all nodes' tensors kept apart.

    Borders are arrays per frame, as an executor would hold them.
    """

    def __init__(
        self,
        graph: Graph,
        assignment: Sequence[int],
        *,
        rows: int,
        frames: int = 1,
        mode: str = "train",
        engine: NumpyEngine | None = None,
        fuse: bool = False,
        micro_batches: int = 4,
    ) -> None:
        self.graph, self.rows, self.frames = graph, rows, frames
        self.engine = engine or NumpyEngine()
        cut = segments(graph, assignment)
        owned = {n: [i for i, a in enumerate(assignment) if a == n] for n in sorted(set(assignment))}
        fused = self.engine.fusable(graph) if fuse else frozenset()
        self.tensors = {
            n: self.engine.allocate(
                graph, ops, training=mode == "train", fuse=fused, micro_batches=1 if fuse else micro_batches
            )
            for n, ops in owned.items()
        }
        for tensors in self.tensors.values():
            fill(self.engine, graph, tensors)
        self.programs = [
            self.engine.compile(
                graph,
                s.ops,
                self.tensors[s.node],
                rows=rows,
                frames=frames,
                mode=mode,
                fuse=fused,
            )
            for s in cut
        ]
        described = {v.name: v for v in (*graph.inputs, *graph.values)}
        names = {v for p in self.programs for v in (*p.values_in, *p.values_out)}
        edges = {e for p in self.programs for e in (*p.gradients_in, *p.gradients_out)}

        def empty(name: str) -> Array:
            value = described[name]
            return np.full(self.engine.shape(value, rows), 77, self.engine.dtype(value))

        self.values = [{name: empty(name) for name in names} for _ in range(frames)]
        self.gradients = [{edge: empty(edge[0]) for edge in edges} for _ in range(frames)]

    def load(self, frame: int, data: dict[str, Array]) -> None:
        for value in self.graph.inputs:
            if value.name in self.values[frame]:
                self.engine.import_value(value, data[value.name], self.values[frame][value.name])

    def step(self, step: int, data: list[dict[str, Array]], schedule: random.Random | None = None) -> list[Any]:
        """Train one step on these micro-batches; returns every border value and gradient of every micro-batch.

        Without a schedule: micro-batch by micro-batch. With one: any order that the rules of a segment allow.
        """
        count, seen = len(data), []
        done: dict[tuple[str, int], int] = {
            (d, s): 0 for d in ("forward", "backward") for s in range(len(self.programs))
        }
        retired = 0
        loaded = 0
        while retired < count:
            while loaded < min(count, retired + self.frames):
                self.load(loaded % self.frames, data[loaded])
                loaded += 1
            ready = [(d, s) for (d, s), m in done.items() if m < loaded and self._ready(d, s, m, done)]
            direction, segment = schedule.choice(ready) if schedule else max(ready, key=lambda r: r[0] == "backward")
            m = done[direction, segment]
            context = Context(5, step, m, self.rows, 1 / count, rate=RATE)
            program, frame = self.programs[segment], m % self.frames
            if direction == "forward":
                program.forward(frame, context, self.values[frame])
            else:
                program.backward(frame, context, self.gradients[frame], index=m)
            done[direction, segment] += 1
            while retired < count and all(n > retired for n in done.values()):
                frame = retired % self.frames
                outputs = {v for p in self.programs for v in p.values_out}
                seen.append(
                    (
                        {v: self.values[frame][v].copy() for v in outputs},
                        {e: g.copy() for e, g in self.gradients[frame].items()},
                    )
                )
                retired += 1
        return seen

    def _ready(self, direction: str, segment: int, m: int, done: dict[tuple[str, int], int]) -> bool:
        program = self.programs[segment]
        if direction == "forward":
            needs, out = set(program.values_in), "values_out"
        else:
            if done["forward", segment] <= m:
                return False
            needs, out = set(program.gradients_in), "gradients_out"  # type: ignore[assignment]
        makers = [s for s, p in enumerate(self.programs) if needs & set(getattr(p, out))]
        return all(done[direction, s] > m for s in makers)

    def end_step(self, micro_batches: int = 1) -> dict[str, Array]:
        """Total gradients of all nodes, after folding this many micro-batches' statistics into state."""
        totals: dict[str, Array] = {}
        for tensors in self.tensors.values():
            found = self.engine.end_step(self.graph, tensors, micro_batches=micro_batches)
            assert not set(found) & set(totals), "a parameter lies on one node"
            totals.update(found)
        return totals

    @property
    def state(self) -> dict[str, Array]:
        return {name: array for tensors in self.tensors.values() for name, array in tensors.state.items()}
