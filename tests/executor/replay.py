"""A run with mini-batches in flight, replayed by one plain loop: whole copies of all parameters per version, no machine, no
frames, no messages. What a mesh does must equal it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.data import chunks
from p2pnn.data.batches import epoch_order, scale
from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.job.segment import Flow, segments
from p2pnn.job.spec import JobSpec
from p2pnn.model.initial import initial
from p2pnn.train import clipping
from p2pnn.train.optimizers import Updater
from p2pnn.train.rates import rate

Arrays = dict[str, NDArray[Any]]


class Replay:
    """delays: per node, given apart from the code that is tested. Parameters and state begin as the seed says."""

    def __init__(self, spec: JobSpec, assignment: Sequence[int], delays: Sequence[int], blobs: BlobStore) -> None:
        assert spec.micro_batches == 1
        self.spec = spec
        self.engine = NumpyEngine()
        self.columns = columns(spec, blobs)
        graph, rows, flow = spec.graph, spec.batch_size, Flow(spec.graph)
        self.values = {v.name: np.zeros(self.engine.shape(v, rows), v.dtype) for v in (*graph.inputs, *graph.values)}
        self.nodes = [_Node(self, [i for i, n in enumerate(assignment) if n == k], d) for k, d in enumerate(delays)]
        self.parts: list[tuple[_Node, Any]] = []
        for segment in segments(graph, assignment):
            ops = [op for op in segment.ops if op in flow.training]
            if ops:
                node = self.nodes[segment.node]
                program = self.engine.compile(
                    graph, ops, node.tensors, rows=rows, frames=1, mode="train", fuse=node.fuse
                )
                self.parts.append((node, program))
        described = {v.name: v for v in graph.values}
        self.gradients = {
            edge: np.zeros(self.engine.shape(described[edge[0]], rows), np.float32)
            for _, program in self.parts
            for edge in (*program.gradients_in, *program.gradients_out)
        }

    def run(self, steps: int) -> None:
        """Train steps 0 … steps − 1."""
        for step in range(steps):
            self._fill(step)
            context = Context(self.spec.seed, step, 0, self.spec.batch_size, 1.0, 0, rate_of(self.spec, step), (1, 1))
            for node in self.nodes:
                node.read(step)
            for _, program in self.parts:
                program.forward(0, context, self.values)
            for node, program in reversed(self.parts):
                if program.gradients_in or program.gradients_out or node.tensors.gradients or program.fused:
                    program.backward(0, context, self.gradients, index=0)
            for node in self.nodes:
                node.update(step)

    def tensors(self) -> Arrays:
        """Parameters and state in ONNX's layout."""
        held = {name: array for node in self.nodes for name, array in (node.history[-1] | node.tensors.state).items()}
        return {name: self.engine.export_parameter(self.spec.graph, name, array) for name, array in held.items()}

    def _fill(self, step: int) -> None:
        spec = self.spec
        assert spec.train is not None
        epoch, batch = divmod(step, spec.steps_per_epoch)
        rows = epoch_order(spec.train, spec.seed, epoch)[batch * spec.batch_size :][: spec.batch_size]
        for value in spec.graph.inputs:
            array = self.columns[spec.inputs[value.name]][rows]
            scaling = spec.graph.scaling.get(value.name)
            array = scale(array, scaling) if scaling else array.astype(value.dtype)
            self.engine.import_value(value, array, self.values[value.name])


class _Node:
    """history: one whole copy of the parameters per version."""

    def __init__(self, replay: Replay, ops: list[int], delay: int) -> None:
        spec, engine = replay.spec, replay.engine
        plain = spec.optimizer.kind == "sgd" and not spec.optimizer.clip_norm and not spec.optimizer.weight_decay
        self.spec, self.engine, self.delay = spec, engine, delay
        last, flow = delay <= 1, Flow(spec.graph)
        self.fuse = {n for n in engine.fusable(spec.graph) if plain and (last or flow.read_back(n))}
        self.tensors = engine.allocate(spec.graph, ops, training=True, versions=2, fuse=self.fuse)
        for p in (*spec.graph.parameters, *spec.graph.state):
            for held in (self.tensors.parameters, self.tensors.state):
                if p.name in held:
                    held[p.name][...] = engine.import_parameter(spec.graph, p.name, initial(p, spec.seed))
        self.history = [{name: array.copy() for name, array in self.tensors.parameters.items()}]
        self.updater = Updater(spec.optimizer, engine.combine)
        self.slots = {n: {s: np.zeros_like(a) for s in self.updater.slots} for n, a in self.history[0].items()}

    def read(self, step: int) -> None:
        """The first set is what the step's passes read, the second what it updates."""
        for held, version in zip(self.tensors.versions, (max(0, step - self.delay), step), strict=True):
            for name, array in self.history[version].items():
                held[name][...] = array

    def update(self, step: int) -> None:
        spec = self.spec
        totals = self.engine.end_step(spec.graph, self.tensors)
        factor = 1.0
        if spec.optimizer.clip_norm:
            norm = math.sqrt(sum(clipping.squares(totals[p.name]) for p in spec.graph.parameters if p.name in totals))
            factor = min(1.0, spec.optimizer.clip_norm / (norm + 1e-6))
        new = {name: array.copy() for name, array in self.history[-1].items()}
        for p in spec.graph.parameters:
            if p.name in totals:
                at: dict[str, Any] = {"rate": rate_of(spec, step), "step": step, "scale": factor, "decay": p.decay}
                self.updater.update(new[p.name], totals[p.name], self.slots[p.name], **at)
            elif p.name in self.fuse & new.keys():
                new[p.name] = self.tensors.versions[1][p.name].copy()
        self.history.append(new)


def rate_of(spec: JobSpec, step: int) -> float:
    return rate(spec.optimizer, step, spec.steps)


def columns(spec: JobSpec, blobs: BlobStore) -> Arrays:
    assert spec.train is not None
    return {
        c.name: np.concatenate([chunks.open(blobs.path(k.blob)) for k in c.chunks]) for c in spec.train.dataset.columns
    }
