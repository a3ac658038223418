"""Small graphs, profiles and jobs to plan with."""

from __future__ import annotations

from typing import Any

from p2pnn.job.spec import Dataset, JobSpec, Split
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Graph, Initializer, Metric, Op, Parameter, Value
from p2pnn.plan.profile import Link, Profile
from p2pnn.types import NodeId

START = Initializer("constant")


class Net:
    """Builds a graph op by op; every method returns the new value's name."""

    def __init__(self, features: tuple[int, ...] = (16,)) -> None:
        self.inputs = [Value("x", "float32", (BATCH, *features)), Value("y", "int64", (BATCH,))]
        self.seen = {v.name: v for v in self.inputs}
        self.parameters: dict[str, Parameter] = {}
        self.ops: list[Op] = []

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        values = [self.seen[i] for i in inputs]
        op = Op(kind, name, inputs, (f"{name}:0",), ops.normalise(kind, name, attributes, values))
        dtype, shape = ops.infer(op, values)[0]
        self.seen[op.outputs[0]] = Value(op.outputs[0], dtype, shape)
        self.ops.append(op)
        return op.outputs[0]

    def weight(self, name: str, *shape: int) -> str:
        self.parameters.setdefault(name, Parameter(name, shape, START))
        self.seen[name] = Value(name, "float32", shape)
        return name

    def dense(self, name: str, x: str, width: int, weight: str = "") -> str:
        w = weight or self.weight(f"{name}/weight", width, self.seen[x].shape[1])
        return self.op("Gemm", name, x, w)

    def conv(self, name: str, x: str, channels: int) -> str:
        w = self.weight(f"{name}/weight", channels, self.seen[x].shape[1], 3, 3)
        return self.op("Conv", name, x, w, pads=(1, 1, 1, 1))

    def graph(self, scores: str) -> Graph:
        probability = self.op("Softmax", "softmax", scores)
        loss = self.op("SoftmaxCrossEntropyLoss", "loss", scores, "y")
        accuracy = self.op("Accuracy", "accuracy", scores, "y")
        made = tuple(v for op in self.ops for v in (self.seen[o] for o in op.outputs))
        return Graph(
            inputs=tuple(self.inputs),
            parameters=tuple(self.parameters.values()),
            state=(),
            ops=tuple(self.ops),
            values=made,
            outputs={"probability": probability},
            losses=(loss,),
            metrics=(Metric("accuracy", "mean", accuracy),),
        )


def mlp(*widths: int, features: int = 16) -> Graph:
    net = Net((features,))
    h = "x"
    for n, width in enumerate(widths):
        h = net.op("Relu", f"relu{n}", net.dense(f"fc{n}", h, width))
    return net.graph(net.dense("head", h, 10))


def branched(channels: int = 8, blocks: int = 2, extent: int = 16) -> Graph:
    """Residual blocks with two convolutional branches each."""
    net = Net((1, extent, extent))
    h = net.conv("stem", "x", channels)
    for n in range(blocks):
        left = net.op("Relu", f"block{n}/relu", net.conv(f"block{n}/left", h, channels))
        right = net.conv(f"block{n}/right", h, channels)
        h = net.op("Add", f"block{n}/add", left, right)
    return net.graph(net.dense("head", net.op("Flatten", "flatten", h), 10))


def job(graph: Graph, **changes: Any) -> JobSpec:
    settings: dict[str, Any] = {"batch_size": 64, "micro_batches": 4, **changes}
    return JobSpec(name="test", graph=graph, inputs={"x": "x", "y": "y"}, **settings)


def split(rows: int) -> Split:
    return Split(Dataset("d", rows, ()), 0, rows)


def node(name: str, speed: float = 1.0, memory: int = 1 << 34, **changes: Any) -> Profile:
    settings: dict[str, Any] = {
        "node": NodeId(f"{ord(name[0]):032x}"),
        "name": name,
        "gemm_gflops": 10.0 * speed,
        "conv_gflops": 8.0 * speed,
        "bytes_per_s": 5e9 * speed,
        "overhead_s": 2e-6 / speed,
        "memory_bytes_max": memory,
        "fingerprint": "same",
        **changes,
    }
    return Profile(**settings)


def mesh(*nodes: Profile, bytes_per_s: float = 1e9, latency_s: float = 1e-5) -> dict[tuple[NodeId, NodeId], Link]:
    return {(a.node, b.node): Link(bytes_per_s, latency_s) for a in nodes for b in nodes if a is not b}
