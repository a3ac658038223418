"""Our side of `./run bench engine`: ops by the numpy engine alone, whole steps by a real executor process.

An op is compiled as it is in a job: as part of a graph in which something before it has parameters (so that its input needs a
gradient) and something after it a loss; only the op itself is compiled and run. A training step is a job on one node: an
executor is started, gets its data as chunks of a blob store, and is told to train.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks._worker import NICE, Task, peak_bytes, serve
from p2pnn import nn, zoo
from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor import channel, commands
from p2pnn.executor.process import spawn
from p2pnn.job import script
from p2pnn.job.plan import NodeShare, Plan
from p2pnn.job.spec import Chunk, Column, Dataset, JobSpec, Optimizer, Split
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Workload
from p2pnn.plan.predict import predict
from p2pnn.plan.profile import Profile, decode
from p2pnn.train.optimizers import Updater
from p2pnn.types import NodeId
from p2pnn.zoo import mlp

RATE = 1e-4
BATCHES = 4
"""Of data, which steps go round and round."""

PROFILES = 3
"""Measurements of the machine for a prediction; a daemon takes one."""

Settings = Mapping[str, Any]


def conv(x: nn.Value, s: Settings) -> nn.Value:
    return nn.Conv2d(s["channels"], s["size"], stride=s.get("stride", 1), padding=s.get("padding", 0), bias=False)(x)


def pool(x: nn.Value, s: Settings) -> nn.Value:
    return nn.MaxPool2d(s["size"], stride=s.get("stride", s["size"]), padding=s.get("padding", 0))(x)


def attention(x: nn.Value, heads: int) -> nn.Value:
    """Causal; queries, keys and values lie side by side in x."""
    queries, keys, values = nn.split(x, 3, axis=2)
    return nn.attention(queries, keys, values, heads=heads, causal=True)


OPS: dict[str, Callable[[nn.Value, Settings], nn.Value]] = {
    "linear": lambda x, s: nn.Linear(s["features"])(x),
    "conv": conv,
    "max_pool": pool,
    "batch_norm": lambda x, s: nn.BatchNorm()(x),
    "layer_norm": lambda x, s: nn.LayerNorm()(x),
    "relu": lambda x, s: nn.relu(x),
    "gelu": lambda x, s: nn.gelu(x),
    "embedding": lambda x, s: nn.Embedding(s["count"], s["features"])(x),
    "attention": lambda x, s: attention(x, s["heads"]),
}


class OpTask:
    """Forward and backward of the ops that one kind consists of."""

    def __init__(self, case: Settings) -> None:
        graph = one_op(case)
        ops = [i for i, op in enumerate(graph.ops) if not op.name.startswith(("before/", "after/"))]
        engine, rows = NumpyEngine(), case["rows"]
        self._tensors = engine.allocate(graph, ops, training=True)
        self._program = engine.compile(graph, ops, self._tensors, rows=rows, frames=1, mode="train")
        dice = np.random.default_rng(0)
        described = {v.name: v for v in (*graph.inputs, *graph.values)}

        def array(name: str) -> Any:
            value = described[name]
            shape, dtype = engine.shape(value, rows), engine.dtype(value)
            if dtype.kind == "i":
                return dice.integers(0, case["settings"].get("count", case["shape"][0]), shape).astype(dtype)
            return dice.standard_normal(shape).astype(dtype)

        for parameters in (self._tensors.parameters, self._tensors.state):
            for held in parameters.values():
                held[...] = np.abs(dice.standard_normal(held.shape)) * 0.1 + 0.1
        self._values = {n: array(n) for n in (*self._program.values_in, *self._program.values_out)}
        self._gradients = {e: array(e[0]) for e in (*self._program.gradients_in, *self._program.gradients_out)}
        self._context = Context(seed=0, step=0, micro_batch=0, rows=rows)

    def run(self, count: int) -> None:
        for _ in range(count):
            self._program.forward(0, self._context, self._values)
            self._program.backward(0, self._context, self._gradients, index=0)
            self._tensors.statistics.clear()

    def close(self) -> None:
        pass


def one_op(case: Settings) -> Graph:
    """`before/…` makes the op's input, `after/…` a loss of its output."""
    shape, settings = tuple(case["shape"]), case["settings"]
    if case["kind"] == "embedding":
        x = nn.Input("x", shape, dtype="int64")
    elif settings.get("first"):
        x = nn.Input("x", shape)
    else:
        with nn.scope("before"):
            if len(shape) == 3:
                x = nn.Conv2d(shape[0], 1)(nn.Input("x", (1, *shape[1:])))
            else:
                x = nn.Linear(int(np.prod(shape)))(nn.Input("x", (2,)))
                x = nn.reshape(x, (nn.BATCH, *shape)) if len(shape) > 1 else x
    if case["kind"] == "loss":
        return nn.Model({"x": x}, nn.cross_entropy(x, nn.Input("label", (), dtype="int64"))).graph
    y = OPS[case["kind"]](x, settings)
    with nn.scope("after"):
        score = nn.Linear(1)(nn.flatten(y) if len(y.shape) != 2 else y)
        loss = nn.mean_squared_error(score, nn.Input("target", (1,)))
    return nn.Model({"score": score}, loss).graph


class OptimizerTask:
    """One update of one large parameter."""

    def __init__(self, case: Settings) -> None:
        count = case["shape"][0]
        kind, _, _ = case["settings"]["optimizer"].partition(" ")
        self._updater = Updater(Optimizer(kind), NumpyEngine().combine)
        dice = np.random.default_rng(0)
        self._parameter = dice.standard_normal(count, np.float32)
        self._gradient = dice.standard_normal(count, np.float32)
        self._slots = {name: np.zeros(count, np.float32) for name in self._updater.slots}

    def run(self, count: int) -> None:
        for step in range(count):
            self._updater.update(self._parameter, self._gradient, self._slots, rate=RATE, step=step)

    def close(self) -> None:
        pass


def network(kind: str, settings: Settings) -> Graph:
    if kind == "mlp":
        return mlp.build((784,), 10, hidden=settings["hidden"], dropout=0.0).graph
    if kind == "char-gpt":
        return zoo.build(kind, (settings["context"],), settings["classes"]).graph
    return zoo.build(kind, (1, 28, 28), 10).graph


def profile() -> Profile:
    """This machine as a daemon measures it, in a process of its own."""
    command = [sys.executable, "-m", "p2pnn.executor", "--profile"]
    return decode(subprocess.run(command, capture_output=True, check=True).stdout)


class Steps:
    """Training steps of one job, in an executor of its own."""

    def __init__(self, case: Settings) -> None:
        graph, rows = network(case["kind"], case["settings"]), case["rows"]
        self._folder = tempfile.TemporaryDirectory(prefix="p2pnn-bench-")
        blobs = BlobStore(Path(self._folder.name) / "blobs")
        data, inputs = made_up(graph, rows * BATCHES, blobs)
        self._spec = spec = JobSpec(
            "bench",
            graph,
            inputs,
            train=Split(data, 0, data.rows, seed=0),
            batch_size=rows,
            micro_batches=1,
            epochs=1_000_000,
            optimizer=Optimizer(case["settings"]["optimizer"], rate=RATE, schedule="constant"),
        )
        plan = Plan((NodeShare(NodeId(""), "a", "", 0, 0, 0, 0.0),), (0,) * len(graph.ops), 1, 0.0, 0.0)
        self._codec = channel.Codec[commands.FromExecutor](commands.FromExecutor)
        self._waiting: list[Any] = []
        self._step = self._sequence = 0
        self._spawned = spawn(0)
        path = blobs.path(blobs.put(msgspec.msgpack.encode(spec)))
        self._tell(commands.Prepare(str(path), msgspec.msgpack.encode(plan), 0, str(blobs.root)))
        while not isinstance(message := self._next(), commands.Prepared):
            pass
        self._planned = message.memory_bytes

    def run(self, count: int) -> None:
        self._sequence += 1
        self._step += count
        self._tell(script.Train(self._sequence, self._step))
        while True:
            message = self._next()
            if isinstance(message, script.Done) and message.sequence == self._sequence:
                return

    def processor_s(self) -> float:
        """What the executor has computed so far."""
        spent, _, _ = Path(f"/proc/{self._spawned.process.pid}/schedstat").read_text().split()
        return int(spent) / 1e9

    def about(self) -> dict[str, float]:
        """The executor's peak less that of an executor with next to nothing to train; what it allocated, as it tells; and
        the seconds of a step that the planner predicts, from PROFILES measurements of this machine."""
        tiny = Steps({"kind": "mlp", "rows": 1, "settings": {"optimizer": "sgd", "hidden": [1]}})
        tiny.run(3)
        base = peak_bytes(tiny._spawned.process.pid)
        tiny.close()
        work = Workload(self._spec)
        steps_s = [predict(work, [0] * work.count, [profile()], {}, 1).step_s for _ in range(PROFILES)]
        return {
            "bytes": peak_bytes(self._spawned.process.pid) - base,
            "allocated": self._planned,
            "predicted_s": statistics.median(steps_s),
        }

    def close(self) -> None:
        self._spawned.kill()
        self._folder.cleanup()

    def _tell(self, message: Any) -> None:
        self._spawned.socket.sendall(channel.encode(message))

    def _next(self) -> Any:
        while not self._waiting:
            data = self._spawned.socket.recv(1 << 16)
            if not data:
                raise RuntimeError(f"the executor has ended: {self._spawned.reap()}")
            self._waiting += self._codec.feed(data)
        message = self._waiting.pop(0)
        if isinstance(message, commands.Failed):
            raise RuntimeError(f"the executor failed: {message.error}")
        return message


def made_up(graph: Graph, rows: int, blobs: BlobStore) -> tuple[Dataset, dict[str, str]]:
    """Random rows for each input of a network; labels below 10."""
    dice = np.random.default_rng(0)
    columns, inputs = [], {}
    for value in graph.inputs:
        shape = (rows, *value.shape[1:])
        integer = value.dtype == "int64"
        array = dice.integers(0, 10, shape) if integer else dice.standard_normal(shape, np.float32)
        stored = Chunk(blobs.put(chunks.write(array)), rows)
        columns.append(Column(value.name, array.dtype.name, array.shape[1:], (stored,)))
        inputs[value.name] = value.name
    return Dataset("made-up", rows, tuple(columns)), inputs


def make(case: dict[str, Any]) -> Task:
    if case["steps"]:
        return Steps(case)
    return OptimizerTask(case) if case["kind"] == "optimizer" else OpTask(case)


if __name__ == "__main__":
    import threadpoolctl

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the executor's folder must go, too
    with threadpoolctl.threadpool_limits(1):
        serve(make, nice=0 if "steps" in sys.argv[1:] else NICE)  # an executor steps behind by itself
