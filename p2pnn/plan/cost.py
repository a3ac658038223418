"""What a job costs: seconds per op on a profile, bytes per value, and memory per node of an assignment.

Seconds follow the roofline: an op takes its floating-point operations at the node's rate or its bytes at the node's
memory bandwidth, whichever is longer, and an overhead per call. A backward pass of Gemm, MatMul and Conv repeats the forward
work once per input that gets a gradient (weights are one). How often other kinds pass over their bytes was measured (EFFORTS).

Memory is an upper bound that is known before anything starts, because nothing is allocated while a job runs:

    parameters · (1 + optimizer slots) + one gradient accumulator per op that reads a parameter + state
    + frames · (values that are made or arrive here, stashes, gradients that cross the border)
    + the largest scratch that an op works in, with the few gradients that are alive beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import PlanError
from p2pnn.job.segment import Flow
from p2pnn.job.spec import JobSpec
from p2pnn.model import ops as table
from p2pnn.model.graph import BATCH, Op, Shape
from p2pnn.plan.profile import UNMEASURED, Link, Profile
from p2pnn.train.frames import ALIGNMENT_BYTES
from p2pnn.types import NodeId

Floats = NDArray[np.float64]
Links = Mapping[tuple[NodeId, NodeId], Link]

SLOTS: Final = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2}
"""Tensors that each optimizer keeps per parameter."""

STASHING: Final = frozenset({"Dropout", "SoftmaxCrossEntropyLoss", "Softmax"})
"""Kinds that keep a tensor of their output's size for the backward pass, beside their inputs and outputs."""

BLOCKED: Final = frozenset({"MaxPool", "AveragePool", "BatchNormalization"})
"""Kinds that work through their input in a few blocks at once."""

BLOCK_BYTES: Final = 1 << 18
"""The size of a block that stays in a second-level cache, as the numpy engine takes it."""

EFFORTS: Final = {
    "Gemm": (1.5, 4, 1, 1),
    "MatMul": (1.5, 4, 1, 1),
    "Conv": (12, 28, 1, 1),
    "BatchNormalization": (17, 19, 3.4, 4),
    "MaxPool": (9, 30, 4, 12),
    "AveragePool": (9, 20, 4, 8),
    "Dropout": (11, 2.5, 12, 1.4),
    "Softmax": (3, 2.5, 6, 3),
    "Sigmoid": (2, 2, 2.2, 1.2),
    "Tanh": (1, 2, 1.4, 1.2),
    "SoftmaxCrossEntropyLoss": (6, 6, 8, 2),
    "Accuracy": (6, 0, 4, 0),
}
EFFORT: Final = (1.0, 2.0, 1.0, 1.25)
"""Forward and backward: how often an op pays the overhead, and how often its forward bytes move; EFFORT for other kinds.

Measured on the numpy engine with tensors of 16 bytes and of 64 to 512 KiB (Dropout draws numbers; pooling passes over
its window), relative to a tiny Gemm and to a copy.
"""

LIVE_GRADIENTS: Final = 4
"""Gradients inside a segment that exist at one time, each of the largest value's size: an op's own, its inputs', a branch's."""

DISPATCH_OPS: Final = 5
"""Starting one pass of a segment costs as much as the overhead of so many ops: commands, context, arena views."""


@dataclass(frozen=True, slots=True)
class Border:
    """One value's way: from its producer (−1: a graph input) to the ops that read it, and gradients back from some."""

    value: str
    bytes: int
    producer: int
    readers: tuple[int, ...]
    gradients: tuple[int, ...]


class Workload:
    """A job seen as work per op and bytes per value, for one micro-batch. Computed once per plan; never changed.

    Arrays have one entry per op of the graph, 0 for ops that do not run in this kind of job. Raises PlanError where the
    batch cannot be cut into the micro-batches. borders: what really travels. places: what memory is kept for.
    """

    def __init__(self, spec: JobSpec) -> None:
        if spec.micro_batches < 1 or spec.batch_size < 1 or spec.batch_size % spec.micro_batches:
            fitting = [m for m in range(1, spec.batch_size + 1) if spec.batch_size % m == 0]
            nearest = min(fitting, key=lambda m: (abs(m - spec.micro_batches), -m), default=1)
            raise PlanError(
                f"a batch of {spec.batch_size} rows cannot be cut into {spec.micro_batches} equal micro-batches; "
                f"use --micro-batches {nearest} or another --batch-size"
            )
        self.graph = graph = spec.graph
        self.training = spec.kind == "train"
        self.rows = spec.rows_per_micro_batch
        self.micro_batches = spec.micro_batches
        if not self.training and spec.test is not None:
            self.micro_batches = max(1, -(-spec.test.rows // self.rows))
        self.clips = self.training and spec.optimizer.clip_norm > 0
        self.slots = SLOTS.get(spec.optimizer.kind, 2) if self.training else 0
        evaluates = self.training and (spec.validation is not None or spec.test is not None)
        self.flow = flow = Flow(graph)
        self.active = flow.inference if spec.kind == "predict" else flow.training
        self.with_gradient = flow.with_gradient if self.training else frozenset()
        self.value_bytes = {v.name: self._bytes(v.dtype, v.shape) for v in (*graph.inputs, *graph.values)}
        self.borders, self.places = self._borders(), self._places()
        self.parameter_ops = self._parameter_ops()
        self._count_work()
        self._count_memory(evaluates)

    @property
    def count(self) -> int:
        return len(self.graph.ops)

    def _bytes(self, dtype: str, shape: Shape) -> int:
        return int(np.dtype(dtype).itemsize * np.prod([self.rows if n == BATCH else n for n in shape], dtype=np.int64))

    def _borders(self) -> tuple[Border, ...]:
        found = []
        for name, nbytes in self.value_bytes.items():
            readers = tuple(c for c in self.flow.consumers.get(name, ()) if c in self.active)
            back = tuple(self.flow.gradient_consumers(name)) if self.training else ()
            if readers:
                found.append(Border(name, nbytes, self.flow.producer.get(name, -1), readers, back))
        return tuple(found)

    def _places(self) -> tuple[Border, ...]:
        """Every transfer has a place in each frame (`train.frames`), also those that this kind of job never makes."""
        found = []
        for name, nbytes in self.value_bytes.items():
            readers, back = tuple(self.flow.consumers.get(name, ())), tuple(self.flow.gradient_consumers(name))
            aligned = -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            if readers:
                found.append(Border(name, aligned, self.flow.producer.get(name, -1), readers, back))
        return tuple(found)

    def _parameter_ops(self) -> Floats:
        names = {p.name for p in self.graph.parameters}
        return np.array([float(any(v in names for v in op.inputs)) for op in self.graph.ops])

    def _count_work(self) -> None:
        """forward_/backward_: floating-point operations (flops), bytes moved, and calls that each cost the overhead."""
        graph, flow = self.graph, self.flow
        shapes: dict[str, Shape] = {v.name: v.shape for v in (*graph.inputs, *graph.values)}
        shapes = {name: tuple(self.rows if n == BATCH else n for n in shape) for name, shape in shapes.items()}
        weights = {p.name: p.shape for p in (*graph.parameters, *graph.state)}
        trained = {p.name for p in graph.parameters}
        self.forward_flops, self.forward_bytes = np.zeros(self.count), np.zeros(self.count)
        self.backward_flops, self.backward_bytes = np.zeros(self.count), np.zeros(self.count)
        self.forward_calls, self.backward_calls = np.zeros(self.count), np.zeros(self.count)
        self.conv = np.array([op.kind in ("Conv", "ConvTranspose") for op in graph.ops], dtype=bool)
        self.dense = self.conv | np.array([op.kind in ("Gemm", "MatMul") for op in graph.ops], dtype=bool)
        for index in sorted(self.active):
            op = graph.ops[index]
            inputs = [shapes[v] if v in shapes else weights.get(v, ()) for v in op.inputs]
            cost = table.TABLE[op.kind].cost(op, inputs, [shapes[v] for v in op.outputs])
            effort = EFFORTS.get(op.kind, EFFORT)
            self.forward_flops[index], self.forward_bytes[index] = cost.flops, cost.bytes * effort[2]
            self.forward_calls[index] = effort[0]
            if index not in self.with_gradient:
                continue
            again = sum(v in trained or flow.producer.get(v, -1) in self.with_gradient for v in op.inputs[:2])
            self.backward_flops[index] = cost.flops * again
            self.backward_bytes[index] = cost.bytes * (again if self.dense[index] else effort[3])
            self.backward_calls[index] = effort[1]

    def _count_memory(self, evaluates: bool) -> None:
        """kept_bytes: parameters, gradients, slots, state, at the first op that reads each (accumulators at every reader).
        frame_bytes: outputs and stashes per frame. scratch_bytes: of one op while it runs."""
        self.kept_bytes, self.frame_bytes = np.zeros(self.count), np.zeros(self.count)
        self.scratch_bytes = np.zeros(self.count)
        self.parameters, self.updated_bytes = np.zeros(self.count), np.zeros(self.count)
        for p in self.graph.parameters:
            readers = self.flow.consumers.get(p.name, [])
            if readers:
                self.parameters[readers[0]] += p.size
                self.kept_bytes[readers[0]] += 4 * p.size * (1 + self.slots)
                self.updated_bytes[readers[0]] += 4 * p.size * (4 + 2 * self.slots) if self.training else 0
            for reader in readers:
                self.kept_bytes[reader] += 4 * p.size if self.training else 0
        for p in self.graph.state:
            for reader in self.flow.consumers.get(p.name, [])[:1]:
                self.kept_bytes[reader] += 4 * p.size
        for index, op in enumerate(self.graph.ops):
            made = sum(self.value_bytes[v] for v in op.outputs)
            stash = made if self.training and index in self.active and op.kind in STASHING else 0
            self.frame_bytes[index] = made * (2 if evaluates else 1) + stash
            loose = LIVE_GRADIENTS * made if index in self.with_gradient else 0
            self.scratch_bytes[index] = loose + self._scratch(op, made)

    def _scratch(self, op: Op, made: int) -> int:
        """What a kernel works in while it runs: blocks of rows in cache, at least one image's, forward and backward."""
        read = self.value_bytes.get(op.inputs[0], 0)
        if op.kind in BLOCKED:
            return 5 * min(BLOCK_BYTES, max(read, made)) + 5 * max(read, made) // self.rows
        weights = {p.name: p.shape for p in self.graph.parameters}.get(op.inputs[1], ()) if len(op.inputs) > 1 else ()
        if op.kind != "Conv" or len(weights) != 4:  # a dense layer's gradient is made beside its accumulator
            return 4 * int(np.prod(weights, dtype=np.int64)) if weights else 0
        taps = int(np.prod(weights[1:], dtype=np.int64))
        patches = made // weights[0] * taps  # of the whole micro-batch
        return (
            2 * min(patches, BLOCK_BYTES + patches // self.rows)
            + 2 * (read + made) // self.rows
            + 12 * taps * weights[0]
        )


@dataclass(frozen=True, slots=True)
class Seconds:
    """Per op, of one micro-batch: forward and backward; and the update, once per step. dispatch: per segment and pass."""

    forward: Floats
    backward: Floats
    update: Floats
    dispatch: float


def seconds(work: Workload, profile: Profile) -> Seconds:
    """How long every op takes on this node, float64[ops] each."""
    rate = np.where(work.conv, profile.conv_gflops, profile.gemm_gflops) * 1e9

    def roofline(flops: Floats, moved: Floats, calls: Floats) -> Floats:
        computing = np.where(work.dense, flops / rate, 0.0)
        spent = np.maximum(computing, moved / profile.bytes_per_s) + profile.overhead_s * calls
        return np.asarray(spent, dtype=np.float64)

    update = work.updated_bytes / profile.bytes_per_s + 4 * profile.overhead_s * (work.updated_bytes > 0)
    forward = roofline(work.forward_flops, work.forward_bytes, work.forward_calls)
    backward = roofline(work.backward_flops, work.backward_bytes, work.backward_calls)
    return Seconds(forward, backward, update, DISPATCH_OPS * profile.overhead_s)


def link(links: Links, source: NodeId, target: NodeId) -> Link:
    """The link's figures; those of the other direction, or of 1 Gbit/s Ethernet, where it was not measured."""
    return links.get((source, target)) or links.get((target, source)) or UNMEASURED


def memory_bytes(work: Workload, assignment: Sequence[int], node: int, frames: int) -> int:
    """Upper bound of what a job holds on node number `node` of this assignment, in bytes."""
    here = np.asarray(assignment) == node
    kept = work.kept_bytes[here].sum() + work.scratch_bytes[here].max(initial=0)
    frame = work.frame_bytes[here].sum()
    for border in work.places:
        made_here = border.producer >= 0 and here[border.producer]
        if made_here:
            frame += border.bytes * sum(not here[c] for c in border.gradients)
        elif any(here[c] for c in border.readers):
            frame += border.bytes * (1 + sum(bool(here[c]) for c in border.gradients))
    return int(kept + frames * frame)


def limits(profiles: Sequence[Profile], cap: int = 0) -> list[int]:
    """Bytes that a job may take on each of these nodes: nodes on one machine share its memory; cap > 0 limits each."""
    found = []
    for p in profiles:
        sharing = sum(bool(p.machine) and q.machine == p.machine for q in profiles) or 1
        room = p.memory_bytes_max // sharing
        found.append(min(room, cap) if cap > 0 else room)
    return found
