"""What a job costs: seconds per op on a profile, bytes per value, and memory per node of an assignment.

Seconds follow the roofline: an op takes its floating-point operations at the node's rate or its bytes at the node's
memory bandwidth, whichever is longer, and an overhead per call. A backward pass of Gemm, MatMul and Conv repeats the forward
work once per input that gets a gradient (weights are one). How often other kinds pass over their bytes was measured (EFFORTS).

Memory is an upper bound that is known before anything starts, because nothing is allocated while a job runs:

    parameters · (1 + optimizer slots) + gradient accumulators per op that reads a parameter (`model.sums`) + state
    + frames · (values that arrive here, leave or are needed again, stashes, gradients that cross the border)
    + per segment and mode: the largest scratch that an op works in, and what its ops make for each other (see `buffers`)

With mini-batches in flight (`async:K`) a node that runs d updates behind also keeps d older versions of each parameter (of
some only while no work flows, see `executor.versions`). Where plain SGD's update is part of the weight's own product (one
micro-batch per step, no clipping, no decay), there is no accumulator, and no pass for it but the copy into the next version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import PlanError
from p2pnn.job.segment import Flow, delays, segments
from p2pnn.job.spec import JobSpec
from p2pnn.model import ops as table
from p2pnn.model import sums
from p2pnn.model.cost import Cost
from p2pnn.model.graph import BATCH, Shape, elements
from p2pnn.plan import convolution, scratch
from p2pnn.plan.buffers import VIEWS, Lifetimes, wants
from p2pnn.plan.profile import UNMEASURED, Link, Profile
from p2pnn.train.frames import ALIGNMENT_BYTES
from p2pnn.train.optimizers import BLOCK, SLOTS
from p2pnn.types import NodeId

Floats = NDArray[np.float64]
Links = Mapping[tuple[NodeId, NodeId], Link]

EFFORTS: Final = {
    "Gemm": (1.5, 4, 1, 1),
    "MatMul": (1.5, 4, 1, 1),
    "Conv": (12, 28, 1, 1),
    "BatchNormalization": (17, 19, 4, 5.3),
    "MaxPool": (9, 30, 2.6, 7.7),
    "AveragePool": (9, 20, 4, 8),
    "Dropout": (16, 2.5, 16, 1.4),
    "Softmax": (3, 2.5, 6, 3),
    "Sigmoid": (2, 2, 2.2, 1.2),
    "Tanh": (1, 2, 1.4, 1.2),
    "SoftmaxCrossEntropyLoss": (14, 6, 16, 4),
    "Accuracy": (7, 0, 4, 0),
    "TokenLoss": (14, 0, 16, 0),
    "LayerNormalization": (10, 18, 4.8, 6.5),
    "Attention": (16, 19, 9.4, 15.5),
    "Gelu": (10, 1, 12, 0.5),
    "Erf": (10, 1, 14, 0.5),
    "Gather": (3, 10, 0.7, 5),
    "Pow": (2, 8, 3.3, 11),
    "Div": (1, 2.5, 0.5, 2),
    "ReduceMax": (1, 3.5, 5.4, 6.4),
    "Clip": (2.4, 1, 1.7, 0.7),
    "Where": (2, 3, 9, 17),
}
EFFORT: Final = (1.0, 2.0, 1.0, 1.25)
"""Forward and backward: how often an op pays the overhead, and how often its forward bytes move; EFFORT for other kinds.

Measured on the numpy engine with tensors of 16 bytes and of 64 to 512 KiB (Dropout draws numbers; pooling passes over
its window), relative to a tiny Gemm and to a copy.
"""

PACKING: Final = (3.1, 2.5, 2.0)
"""A GEMM also arranges what it reads and writes what it makes: all those bytes so many times in the product forward, in that for
the input's gradient, and in that for the weight's. (Over 32 to 4096 rows and 128 to 2048 columns.)"""

COPYING: Final = 1.2
"""A Flatten or Reshape of a value of rank 4 copies it out of channels-last order: its bytes so many times as slowly."""

UPDATE_CALLS: Final = {"sgd": 3, "momentum": 5, "nesterov": 7, "adagrad": 7, "rmsprop": 7, "adam": 8, "adamw": 8}
"""Overheads of an optimizer per parameter, and per further block of it."""

FUSED_COPY: Final = 2
"""A fused update into another version first copies the newest: its bytes so many times."""

FEED_CALLS, FEED_PASSES = 20, 16
"""Per micro-batch and graph input: overheads of choosing rows, and passes over them (a gather, scaling, a new layout)."""

DISPATCH_OPS: Final = 80
"""Starting one pass of a segment costs as much as the overhead of so many ops: commands, context, arena views, news from
the daemon."""


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
        self.in_flight = spec.in_flight if self.training else 0
        self.clips = self.training and spec.optimizer.clip_norm > 0
        self.slots = len(SLOTS[spec.optimizer.kind]) if self.training else 0
        self.calls_per_block = UPDATE_CALLS.get(spec.optimizer.kind, 16)
        evaluates = self.training and (spec.validation is not None or spec.test is not None)
        self.flow = flow = Flow(graph)
        self.active = flow.inference if spec.forward_only else flow.training
        self.with_gradient = flow.with_gradient if self.training else frozenset()
        self.value_bytes = {v.name: self._bytes(v.dtype, v.shape) for v in (*graph.inputs, *graph.values)}
        self.borders, self.places = self._borders(), self._places()
        self.parameter_ops = self._parameter_ops()
        self._count_work()
        self._count_kept()
        self._count_versions(spec)
        self._count_frames(evaluates, predicts=spec.forward_only)

    @property
    def count(self) -> int:
        return len(self.graph.ops)

    def delays(self, assignment: Sequence[int]) -> tuple[int, ...]:
        """Per node number, how many updates behind it runs; all 0 for `sync`."""
        count = max(assignment, default=0) + 1
        return delays(self.graph, assignment, self.in_flight, count) or (0,) * count

    def versions_bytes(self, delay: int) -> Floats:
        """Per op, what its parameters take more, or less, on a node that runs `delay` updates behind."""
        return delay * self.trained_bytes - self.fused_bytes(delay)

    def fused_bytes(self, delay: int) -> Floats:
        """Per op, the gradients that a node without, or with so many updates behind does not keep (`executor.weights.fused`)."""
        return self._fused_bytes[1 if delay > 1 else 0]

    def leaving(self, border: Border) -> float:
        """Bytes per frame that a value made by an op takes more because somebody outside its segment reads it."""
        return border.bytes if self.sent_bytes[border.producer] else 0.0

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
        values = {v.name: v.shape for v in (*graph.inputs, *graph.values)}
        shapes: dict[str, Shape] = {p.name: p.shape for p in (*graph.parameters, *graph.state)}
        shapes |= {name: tuple(self.rows if n == BATCH else n for n in shape) for name, shape in values.items()}
        self.shapes = shapes
        trained = {p.name for p in graph.parameters}
        self.forward_flops, self.forward_bytes = np.zeros(self.count), np.zeros(self.count)
        self.backward_flops, self.backward_bytes = np.zeros(self.count), np.zeros(self.count)
        self.forward_calls, self.backward_calls = np.zeros(self.count), np.zeros(self.count)
        self.forward_packed, self.backward_packed = np.zeros(self.count), np.zeros(self.count)
        self.conv = np.array([op.kind == "Conv" for op in graph.ops], dtype=bool)
        self.dense = self.conv | np.array([op.kind in ("Gemm", "MatMul") for op in graph.ops], dtype=bool)
        for index in sorted(self.active):
            op = graph.ops[index]
            inputs = [shapes[v] for v in op.inputs]
            cost = table.TABLE[op.kind].cost(op, inputs, [shapes[v] for v in op.outputs])
            effort = EFFORTS.get(op.kind, EFFORT)
            self.forward_flops[index], self.forward_bytes[index] = cost.flops, cost.bytes * effort[2]
            self.forward_calls[index] = effort[0]
            if op.kind == "Gemm":
                wanted = wants(graph, flow, index) if index in self.with_gradient else (False, False)
                self.forward_packed[index] = PACKING[0] * cost.bytes
                self.backward_packed[index] = sum(s * w for s, w in zip(PACKING[1:], wanted, strict=False)) * cost.bytes
            elif op.kind in VIEWS and any(len(shape) == 4 for shape in (inputs[0], shapes[op.outputs[0]])):
                cost = Cost(0.0, 8.0 * elements(inputs[0]))
                effort = (1, 2, COPYING, COPYING)
                self.forward_bytes[index] = cost.bytes * COPYING
            elif op.kind == "Conv":
                self._convolve(index, scratch.Window.of(op, inputs, shapes[op.outputs[0]]))
            if index not in self.with_gradient:
                continue
            again = sum(v in trained or flow.producer.get(v, -1) in self.with_gradient for v in op.inputs[:2])
            self.backward_flops[index] = self.backward_flops[index] or self.forward_flops[index] * again
            self.backward_bytes[index] = cost.bytes * (again if self.dense[index] else effort[3])
            self.backward_calls[index] = effort[1]

    def _convolve(self, index: int, window: scratch.Window) -> None:
        """By the engine's method, where that is a product of ordinary operands; else conv_gflops tells all."""
        wants_input, wants_weight, *_ = wants(self.graph, self.flow, index) if self.training else (False, False)
        found = convolution.efforts(window, wants_input)
        if found is None:
            return
        self.conv[index] = False
        forward, weight, back = found
        self.forward_flops[index], self.forward_packed[index] = forward.flops, forward.bytes
        self.backward_flops[index] = wants_weight * weight.flops + wants_input * back.flops
        self.backward_packed[index] = wants_weight * weight.bytes + wants_input * back.bytes

    def _count_kept(self) -> None:
        """kept_bytes: parameters, gradients, slots, state, at the first op that reads each (accumulators at every reader)."""
        self.kept_bytes = np.zeros(self.count)
        self.parameters, self.updated_bytes = np.zeros(self.count), np.zeros(self.count)
        self.update_calls = np.zeros(self.count)
        for p in self.graph.parameters:
            readers = self.flow.consumers.get(p.name, [])
            if readers:
                self.parameters[readers[0]] += p.size
                self.kept_bytes[readers[0]] += 4 * p.size * (1 + self.slots)
                self.updated_bytes[readers[0]] += 4 * p.size * (4 + 6 * self.slots) if self.training else 0
                self.update_calls[readers[0]] += self.calls_per_block * -(-p.size // BLOCK) if self.training else 0
            for reader in readers:
                self.kept_bytes[reader] += 4 * p.size * sums.most(self.micro_batches) if self.training else 0
        for p in self.graph.state:
            for reader in self.flow.consumers.get(p.name, [])[:1]:
                self.kept_bytes[reader] += 4 * p.size

    def _count_versions(self, spec: JobSpec) -> None:
        """At the first op that reads a parameter. trained_bytes: those that updates change. _fused_bytes: the gradients that
        plain SGD can do without, on nodes that run at most one update behind and on others."""
        self.trained_bytes, self._fused_bytes = np.zeros(self.count), (np.zeros(self.count), np.zeros(self.count))
        optimizer = spec.optimizer
        plain = self.training and optimizer.kind == "sgd" and not optimizer.clip_norm and spec.micro_batches == 1
        for p in self.graph.parameters:
            readers = self.flow.consumers.get(p.name, [])
            if self.with_gradient.isdisjoint(readers):
                continue
            self.trained_bytes[readers[0]] += 4 * p.size
            op = self.graph.ops[readers[0]]
            factor = (
                len(readers) == 1 and len(p.shape) == 2 and op.kind in ("Gemm", "MatMul") and p.name == op.inputs[1]
            )
            if plain and factor and not (optimizer.weight_decay and p.decay):
                self._fused_bytes[0][readers[0]] += 4 * p.size
                self._fused_bytes[1][readers[0]] += 4 * p.size * self.flow.read_back(p.name)

    def _count_frames(self, evaluates: bool, predicts: bool) -> None:
        """frame_bytes: per frame, what an op makes that is kept, and its stash. scratch_bytes: per segment, the most of any of
        its ops in each row: [scratch, live values] of each mode. sent_bytes: an output's bytes where it is not in
        frame_bytes, which leaving the segment adds."""
        graph, flow = self.graph, self.flow
        self.frame_bytes, self.sent_bytes = np.zeros(self.count), np.zeros(self.count)
        modes = [self.training, False] if self.training and evaluates else [self.training]
        self.scratch_bytes = np.zeros((2 * len(modes), self.count))
        results = set(graph.outputs.values()) if predicts else {*graph.losses, *(m.value for m in graph.metrics)}
        for mode, training in enumerate(modes):
            lifetimes = Lifetimes(
                graph, flow, self.active, self.value_bytes, training=training, alone=self.micro_batches == 1
            )
            self.scratch_bytes[2 * mode + 1] = lifetimes.live
            for index in sorted(self.active):
                op = graph.ops[index]
                inputs = [self.shapes[v] for v in op.inputs]
                wanted = wants(graph, flow, index) if training else (False,) * len(inputs)
                room = scratch.room(op, inputs, self.shapes[op.outputs[0]], wanted, training=training)
                self.scratch_bytes[2 * mode, index] = room.scratch
                self.kept_bytes[index] += room.own
                self.frame_bytes[index] += room.stash
            if mode == 0:
                self.frame_bytes += lifetimes.kept
                kept = lifetimes.kept > 0
        for index, op in enumerate(graph.ops):
            made = sum(self.value_bytes[v] for v in op.outputs)
            if not kept[index] and any(v in results for v in op.outputs):
                self.frame_bytes[index] += made
            elif not kept[index]:
                self.sent_bytes[index] = made


@dataclass(frozen=True, slots=True)
class Seconds:
    """Per op, of one micro-batch: forward and backward, and how much of them passes with moving bytes and with calls; and,
    once per step, the update on a node that runs no, one or more updates behind. dispatch: per segment and pass. feed: per
    micro-batch, on a node with ops that read the graph input, by name."""

    forward: Floats
    backward: Floats
    forward_moving: Floats
    backward_moving: Floats
    updates: tuple[Floats, Floats, Floats]
    dispatch: float
    feed: Mapping[str, float]

    def feeding(self, work: Workload, ops: Sequence[int]) -> float:
        """What these ops, all that a node has, take for their graph inputs per micro-batch."""
        read = {v for i in ops if i in work.active for v in work.graph.ops[i].inputs}
        return sum(cost for name, cost in self.feed.items() if name in read)

    def updating(self, delay: int) -> Floats:
        """The update on a node that runs `delay` updates behind."""
        return self.updates[min(delay, 2)]


def seconds(work: Workload, profile: Profile) -> Seconds:
    """How long every op takes on this node, float64[ops] each."""
    rate = np.where(work.conv, profile.conv_gflops, profile.gemm_gflops) * 1e9

    def roofline(flops: Floats, moved: Floats, calls: Floats, packed: Floats) -> tuple[Floats, Floats]:
        computing = np.where(work.dense, flops / rate, 0.0)
        moving = moved / profile.bytes_per_s
        besides = packed / profile.bytes_per_s + profile.overhead_s * calls
        return np.maximum(computing, moving) + besides, np.where(moving > computing, moving, 0.0) + besides

    update = work.updated_bytes / profile.bytes_per_s + profile.overhead_s * work.update_calls
    copying = FUSED_COPY * work.trained_bytes / profile.bytes_per_s
    updates = [np.where(work.fused_bytes(delay) > 0, copying * (delay > 0), update) for delay in range(3)]
    forward, forward_moving = roofline(work.forward_flops, work.forward_bytes, work.forward_calls, work.forward_packed)
    backward, backward_moving = roofline(
        work.backward_flops, work.backward_bytes, work.backward_calls, work.backward_packed
    )
    feed = {
        v.name: FEED_CALLS * profile.overhead_s + FEED_PASSES * work.value_bytes[v.name] / profile.bytes_per_s
        for v in work.graph.inputs
    }
    dispatch = DISPATCH_OPS * profile.overhead_s
    return Seconds(
        forward, backward, forward_moving, backward_moving, (updates[0], updates[1], updates[2]), dispatch, feed
    )


def link(links: Links, source: NodeId, target: NodeId) -> Link:
    """The link's figures; those of the other direction, or of 1 Gbit/s Ethernet, where it was not measured."""
    return links.get((source, target)) or links.get((target, source)) or UNMEASURED


def memory_bytes(work: Workload, assignment: Sequence[int], node: int, frames: int) -> int:
    """Upper bound of what a job holds on node number `node` of this assignment, in bytes."""
    home = np.full(work.count, -1)
    total = frame = 0.0
    delay = dict(enumerate(work.delays(assignment))).get(node, 0)
    kept = work.kept_bytes + work.versions_bytes(delay)
    for segment in segments(work.graph, assignment):
        if segment.node == node:
            ops = list(segment.ops)
            home[ops] = segment.index
            total += kept[ops].sum() + work.scratch_bytes[:, ops].max(axis=1).sum()
            frame += work.frame_bytes[ops].sum()
    for border in work.places:
        made = home[border.producer] if border.producer >= 0 else -1
        arrives = any(home[c] >= 0 for c in border.readers)
        if made >= 0:
            leaves = any(home[c] != made for c in border.readers)
            frame += work.leaving(border) * leaves
            frame += border.bytes * sum(home[c] != made for c in border.gradients)
        elif arrives:
            frame += border.bytes * (1 + sum(home[c] >= 0 for c in border.gradients))
    return int(total + frames * frame)


def limits(profiles: Sequence[Profile], cap: int = 0) -> list[int]:
    """Bytes that a job may take on each of these nodes: nodes on one machine share its memory; cap > 0 limits each."""
    found = []
    for p in profiles:
        sharing = sum(bool(p.machine) and q.machine == p.machine for q in profiles) or 1
        room = p.memory_bytes_max // sharing
        found.append(min(room, cap) if cap > 0 else room)
    return found
