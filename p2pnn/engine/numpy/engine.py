"""The numpy engine: the default, and the reference that other engines are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import threadpoolctl

from p2pnn.engine.base import Mode, Tensors
from p2pnn.engine.numpy import blas
from p2pnn.engine.numpy.edges import accumulators
from p2pnn.engine.numpy.layout import (
    Array,
    Operands,
    engine_shape,
    engine_view,
    numpy_dtype,
    onnx_view,
    parameter_order,
    value_order,
)
from p2pnn.engine.numpy.program import NumpyProgram
from p2pnn.model import sums
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph, Value


class NumpyEngine:
    """See `engine.base.Engine`. dtype: what float32 is computed in; float64 serves to check gradients."""

    name = "numpy"

    def __init__(self, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._dtype: np.dtype[np.floating[Any]] = np.dtype(dtype)

    def fingerprint(self) -> str:
        """numpy's version and vector kernels, the BLAS and its kernel type and threads, and the floating dtype.

        Threads are those in force now: ask inside the limits that computing runs under.
        """
        libraries = sorted(
            f"{p['internal_api']} {p['version']} {p.get('architecture', '')} {p['num_threads']} threads"
            for p in threadpoolctl.threadpool_info()
            if p["user_api"] == "blas"
        )
        kernels = np.lib.introspect.opt_func_info(func_name="^(add|exp|tanh|maximum)$", signature=self._dtype.name)
        vectors = sorted({str(kind["current"]) for signatures in kernels.values() for kind in signatures.values()})
        return " | ".join([f"numpy {np.__version__} {' '.join(vectors)}", *libraries, blas.name, self._dtype.name])

    def shape(self, value: Value, rows: int) -> tuple[int, ...]:
        """A value's shape in this engine: [rows, H, W, C] where the graph says (batch, C, H, W)."""
        return engine_shape(value.shape, rows, value_order(value.shape))

    def dtype(self, value: Value) -> np.dtype[Any]:
        """A value's dtype in this engine."""
        return numpy_dtype(value.dtype, self._dtype)

    def import_value(self, value: Value, array: Array, out: Array) -> None:
        """Copy a value from ONNX's layout; `out` may hold more rows, which are zeroed."""
        count = len(array) if array.ndim else 0
        np.copyto(out[:count] if array.ndim else out, engine_view(array, value_order(value.shape)))
        if array.ndim:
            out[count:] = 0

    def export_value(self, value: Value, array: Array) -> Array:
        """Copy a value into ONNX's layout."""
        return np.array(onnx_view(array, value_order(value.shape)), order="C")

    def import_parameter(self, graph: Graph, name: str, array: Array) -> Array:
        """A parameter or state tensor in this engine's layout, as a new array."""
        return np.array(engine_view(array, parameter_order(graph, name)), dtype=self._dtype, order="C")

    def export_parameter(self, graph: Graph, name: str, array: Array) -> Array:
        """The inverse of import_parameter."""
        return np.array(self.parameter_view(graph, name, array), order="C")

    def parameter_view(self, graph: Graph, name: str, array: Array) -> Array:
        """export_parameter without a copy."""
        return onnx_view(array, parameter_order(graph, name))

    def fusable(self, graph: Graph) -> frozenset[str]:
        """Weights of Gemm and MatMul that one op reads, once, and trains."""
        flow, trained = Flow(graph), {p.name for p in graph.parameters if len(p.shape) == 2}
        found = set()
        for index in flow.with_gradient:
            op = graph.ops[index]
            if op.kind in ("Gemm", "MatMul"):
                name = op.inputs[1]
                if name in trained and flow.consumers[name] == [index] and op.inputs.count(name) == 1:
                    found.add(name)
        return frozenset(found)

    def allocate(
        self,
        graph: Graph,
        ops: Sequence[int],
        *,
        training: bool,
        versions: int = 1,
        fuse: Set[str] = frozenset(),
        micro_batches: int = 1,
    ) -> Tensors:
        """Zeroed tensors for everything that these ops own; gradients only if training, and none for `fuse`."""
        operands = Operands(graph, 1, self._dtype)
        read = {name for index in ops for name in graph.ops[index].inputs}
        tensors = Tensors(versions=[{} for _ in range(versions)], micro_batches=micro_batches)
        for held, into in (*((graph.parameters, v) for v in tensors.versions), (graph.state, tensors.state)):
            for p in held:
                if p.name in read:
                    into[p.name] = np.zeros(operands.named(p.name).shape, self._dtype)
        if training:
            for name, index in accumulators(graph, ops):
                if name in fuse:
                    continue
                tensors.gradients[name, index] = np.zeros_like(tensors.parameters[name])
            tensors.partial = [
                {edge: np.zeros_like(array) for edge, array in tensors.gradients.items()}
                for _ in range(sums.most(micro_batches) - 1)
            ]
        return tensors

    def compile(
        self,
        graph: Graph,
        ops: Sequence[int],
        tensors: Tensors,
        *,
        rows: int,
        frames: int,
        mode: Mode,
        fuse: Set[str] = frozenset(),
        ready: Callable[[str], None] | None = None,
    ) -> NumpyProgram:
        """Compile those of the ops that are active in `mode`. Raises ModelError for an op without a kernel."""
        return NumpyProgram(
            graph, ops, tensors, rows=rows, frames=frames, mode=mode, dtype=self._dtype, fuse=fuse, ready=ready
        )

    def combine(self, alpha: float, x: Array, beta: float, y: Array) -> None:
        """y ← α·x + β·y in place, in one pass where BLAS can be called."""
        blas.combine(alpha, x, beta, y)

    def end_step(self, graph: Graph, tensors: Tensors, *, micro_batches: int = 1) -> dict[str, Array]:
        """Sum gradients, and fold batch normalization's statistics: running = m · running + (1 − m) · batch."""
        self._fold_statistics(graph, tensors, micro_batches)
        levels = [tensors.gradients, *tensors.partial]
        for level in range(sums.left(micro_batches) - 1, 0, -1):
            for edge, newer in levels[level].items():
                np.add(levels[level - 1][edge], newer, out=levels[level - 1][edge])
        by_parameter: dict[str, list[int]] = {}
        for name, index in sorted(tensors.gradients, key=lambda key: key[1]):
            by_parameter.setdefault(name, []).append(index)
        totals: dict[str, Array] = {}
        for p in graph.parameters:
            for position, index in enumerate(by_parameter.get(p.name, ())):
                gradient = tensors.gradients[p.name, index]
                if position == 0:
                    totals[p.name] = gradient
                else:
                    np.add(totals[p.name], gradient, out=totals[p.name])
        return totals

    def _fold_statistics(self, graph: Graph, tensors: Tensors, micro_batches: int) -> None:
        for micro_batch in range(micro_batches):
            for index in sorted(tensors.statistics):
                op, batches = graph.ops[index], tensors.statistics[index]
                if micro_batch >= len(batches):
                    continue
                momentum = op.number("momentum")
                for name, batch in zip(op.inputs[3:5], batches[micro_batch], strict=True):
                    running = tensors.state[name]
                    np.multiply(running, momentum, out=running)
                    np.add(running, batch * self._dtype.type(1 - momentum), out=running)
        for index, batches in list(tensors.statistics.items()):
            del batches[:micro_batches]
            if not batches:
                del tensors.statistics[index]
