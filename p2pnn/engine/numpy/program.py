"""A compiled segment: a plan's ops with their kernels and memory, run forward and in reverse, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np

from p2pnn.engine.base import Context, Edge, Look, Mode, Tensors
from p2pnn.engine.numpy.binding import Frame
from p2pnn.engine.numpy.edges import Edges
from p2pnn.engine.numpy.kernel import Kernel, Site, Workspace, arena
from p2pnn.engine.numpy.layout import Array, Operands
from p2pnn.engine.numpy.planning import Planner
from p2pnn.engine.numpy.table import KERNELS
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph


class NumpyProgram:
    """See `engine.base.Program`. memory_bytes is exact but for the kernels' few small constants, and for what Python keeps of
    bound calls: 0.1 MiB per frame for char-gpt, 2.9 for resnet8 with 128 rows."""

    def __init__(
        self,
        graph: Graph,
        ops: Sequence[int],
        tensors: Tensors,
        *,
        rows: int,
        frames: int,
        mode: Mode,
        dtype: np.dtype[np.floating],
        fuse: Set[str] = frozenset(),
        ready: Callable[[str], None] | None = None,
    ) -> None:
        edges = Edges(graph, ops, mode)
        self.values_in, self.values_out = edges.values_in, edges.values_out
        self.gradients_in, self.gradients_out = edges.gradients_in, edges.gradients_out
        self._rows, self._mode = rows, mode
        trained = {name for i in edges.trained for name in graph.ops[i].inputs}
        self.fused: frozenset[str] = frozenset(trained & fuse)
        described = Operands(graph, rows, dtype)
        operands = {index: described.of(graph.ops[index]) for index in edges.ops}
        workspace = Workspace()
        kernels: dict[int, Kernel] = {}
        for index in edges.ops:
            op = graph.ops[index]
            if op.kind not in KERNELS:
                raise ModelError(
                    f"{op.name}: the numpy engine has no operator {op.kind!r}; known are {', '.join(KERNELS)}"
                )
            workspace.next_kernel()
            inputs, outputs = operands[index]
            training, wants = mode == "train", edges.wants(index)
            fused = frozenset(n for n, name in enumerate(op.inputs) if wants[n] and name in self.fused)
            kernels[index] = KERNELS[op.kind](
                Site(index, op, inputs, outputs, wants, training, dtype, workspace, tensors, fused)
            )
        self._plan = plan = Planner(edges, operands, kernels, tensors.micro_batches).plan()
        shared = arena(plan.shared_bytes)
        kept = [arena(plan.kept_bytes) for _ in range(frames)]
        self._frames = [Frame(plan, tensors, shared, own, dtype, ready) for own in kept]
        self.memory_bytes = workspace.allocate() + shared.nbytes + sum(own.nbytes for own in kept)

    def forward(self, frame: int, context: Context, values: Mapping[str, Array], look: Look | None = None) -> None:
        """Run the ops on one micro-batch. What backward needs stays in the frame."""
        if not 0 < context.rows <= self._rows or (self._mode == "train" and context.rows != self._rows):
            raise ModelError(f"a micro-batch has {context.rows} rows, but the program was compiled for {self._rows}")
        self._frames[frame].forward(context, values, look)

    def backward(self, frame: int, context: Context, gradients: Mapping[Edge, Array], *, index: int) -> None:
        """Run the ops' gradients in reverse order, over what `forward` left in the frame."""
        self._frames[frame].backward(context, gradients, index)
