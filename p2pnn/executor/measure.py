"""Measure this machine: what the planner must know of a node, in at most 0.4 s.

Run in a process of its own (`python -m p2pnn.executor --profile`), because a daemon never computes. Every figure is the best
of several short runs with one BLAS thread, as a job runs: the best is what the machine can do, and it repeats
better than a mean on a machine that does other things beside.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import threadpoolctl

from p2pnn.engine.base import Context
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor.memory import available_bytes
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Graph, Initializer, Op, Parameter, Value
from p2pnn.plan.cost import PACKING
from p2pnn.plan.profile import Profile
from p2pnn.types import NodeId

GEMMS: Final = ((128, 512, 512), (256, 512, 512), (512, 512, 512))
"""Rows × in × out: dense layers of ordinary networks."""

CHAIN: Final = 16
"""Ops in a row whose arithmetic takes no time beside the calls themselves."""

ACTIVATION_BYTES, ACTIVATIONS = 2 << 20, 12
"""Arrays of a chain of elementwise ops, each of which reads the one before: as the activations of a micro-batch, one is larger
than most second-level caches, and all together larger than what a core has of the third. (One copy between two such arrays says
more than the machine: 95 GB/s where a network's ops came to 18, because they fit into the third-level cache.)"""


def measure(seconds: float = 0.4) -> Profile:
    """Measure for about `seconds`; node and name are left empty for the daemon to fill in."""
    with threadpoolctl.threadpool_limits(1):
        bandwidth = _bandwidth(seconds * 0.17)
        gemm = float(np.median([_gemm(*shape, seconds * 0.36 / len(GEMMS), bandwidth) for shape in GEMMS]))
        conv = _convolution(seconds * 0.22)
        overhead = _overhead(seconds * 0.07)
        fingerprint = NumpyEngine().fingerprint()
    return Profile(
        node=NodeId(""),
        name="",
        gemm_gflops=gemm / 1e9,
        conv_gflops=conv / 1e9,
        bytes_per_s=bandwidth,
        overhead_s=overhead,
        memory_bytes_max=available_bytes(),
        cores=cores(),
        threads=1,
        fingerprint=fingerprint,
        machine=machine(),
    )


def cores() -> int:
    """Cores that this process may use: its affinity mask where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def machine() -> str:
    """The same 16 digits for all processes on this computer until it restarts; a digest, so that it tells nothing else."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        identity = f"{platform.node()} {platform.machine()} {platform.version()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _best(run: Callable[[], object], seconds: float) -> float:
    """The shortest of as many runs as fit, at least two after one to warm up, in seconds."""
    run()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return max(best, 1e-9)


def _gemm(rows: int, inner: int, width: int, seconds: float, bandwidth: float) -> float:
    """Floating-point operations per second of one dense layer, without what the planner adds for arranging the weight."""
    x, w = np.ones((rows, inner), np.float32), np.ones((width, inner), np.float32)
    out = np.empty((rows, width), np.float32)
    best = _best(lambda: np.matmul(x, w.T, out=out), seconds)
    return 2.0 * rows * inner * width / max(best / 2, best - PACKING[0] * w.nbytes / bandwidth)


def _convolution(seconds: float) -> float:
    """The same for a 3 × 3 convolution of 4 images, by the engine itself."""
    extent, channels = 28, 16
    x = Value("x", "float32", (BATCH, channels, extent, extent))
    weight = Parameter("w", (channels, channels, 3, 3), Initializer("constant"))
    attributes = ops.normalise("Conv", "conv", {"pads": (1, 1, 1, 1)}, [x, Value("w", "float32", weight.shape)])
    y = Value("y", "float32", x.shape)
    graph = Graph((x,), (weight,), (), (Op("Conv", "conv", ("x", "w"), ("y",), attributes),), (y,), {"y": "y"})
    return 2.0 * 4 * extent * extent * 9 * channels * channels / _best(_forward(graph, 4), seconds)


def _forward(graph: Graph, rows: int) -> Callable[[], None]:
    """One forward pass of all ops of a graph, on zeros."""
    engine = NumpyEngine()
    indices = range(len(graph.ops))
    tensors = engine.allocate(graph, indices, training=False)
    program = engine.compile(graph, indices, tensors, rows=rows, frames=1, mode="predict")
    described = {v.name: v for v in (*graph.inputs, *graph.values)}
    names = (*program.values_in, *program.values_out)
    values = {n: np.zeros(engine.shape(described[n], rows), engine.dtype(described[n])) for n in names}
    context = Context(seed=0, step=0, micro_batch=0, rows=rows)
    return lambda: program.forward(0, context, values)


def _bandwidth(seconds: float) -> float:
    """Bytes per second, read plus written."""
    chain = [np.ones(ACTIVATION_BYTES // 4, np.float32) for _ in range(ACTIVATIONS)]

    def run() -> None:
        for source, target in pairwise(chain):
            np.maximum(source, 0.5, out=target)

    return 2.0 * ACTIVATION_BYTES * (ACTIVATIONS - 1) / _best(run, seconds)


def _overhead(seconds: float) -> float:
    """Seconds that an op takes on next to no data: a chain of dense layers of one number."""
    x = Value("x", "float32", (BATCH, 1))
    weight = Parameter("w", (1, 1), Initializer("constant"))
    attributes = ops.normalise("Gemm", "dense", {}, [x, Value("w", "float32", weight.shape)])
    chain = tuple(
        Op("Gemm", f"dense{n}", (f"v{n}" if n else "x", "w"), (f"v{n + 1}",), attributes) for n in range(CHAIN)
    )
    made = tuple(Value(f"v{n + 1}", "float32", x.shape) for n in range(CHAIN))
    return _best(_forward(Graph((x,), (weight,), (), chain, made, {"y": made[-1].name}), 1), seconds) / CHAIN
