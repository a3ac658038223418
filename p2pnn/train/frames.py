"""Where every tensor that crosses between nodes lies in a node's arena.

Memory is static: a node has F *frames*, one per micro-batch in flight, and in each frame every tensor that the node
sends or receives has one fixed place. Micro-batch m uses frame m mod F. The daemon and the executor compute the same
layout from (graph, plan, node), so a tensor travels between them as two numbers, and nothing is ever allocated, moved
or freed while a job runs.

A value that goes to several nodes has one place: all its transfers read from it. Gradients have a place per consuming
op, because the producer sums them itself, in graph order. Every place starts at a multiple of 64 bytes, a cache line
and the widest vector register. Sizes do not depend on an engine's layout, which only permutes the axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from p2pnn.errors import LocalProtocolError
from p2pnn.job.plan import Plan
from p2pnn.job.segment import transfers
from p2pnn.model.graph import BATCH, Graph, Value

ALIGNMENT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one node. `offsets`: transfer → (offset within a frame, bytes), for what this node sends and receives."""

    frames: int
    frame_bytes: int
    offsets: Mapping[int, tuple[int, int]]

    @property
    def arena_bytes(self) -> int:
        """The size of the whole arena; 0 where nothing crosses to or from this node."""
        return self.frames * self.frame_bytes

    def place(self, transfer: int, micro_batch: int) -> tuple[int, int]:
        """(offset in the arena, bytes) of a tensor. Raises LocalProtocolError where it neither starts nor ends here."""
        found = self.offsets.get(transfer)
        if found is None:
            raise LocalProtocolError(f"transfer {transfer} neither starts nor ends on this node")
        return micro_batch % self.frames * self.frame_bytes + found[0], found[1]


def layout(graph: Graph, plan: Plan, node_index: int, rows: int) -> Layout:
    """Lay out node `node_index` of the plan for micro-batches of `rows` rows."""
    described = {value.name: value for value in graph.values}
    offsets: dict[int, tuple[int, int]] = {}
    shared: dict[tuple[str, int], int] = {}  # (value, consumer) → offset; consumer −1 is the value itself
    end = 0
    for transfer in transfers(graph, plan.assignment):
        if node_index not in (transfer.source, transfer.target):
            continue
        size = nbytes(described[transfer.value], rows)
        key = (transfer.value, transfer.consumer)
        if key not in shared:
            shared[key] = end
            end += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offsets[transfer.index] = (shared[key], size)
    return Layout(plan.frames, end, offsets)


def nbytes(value: Value, rows: int) -> int:
    """The bytes of a value with `rows` for the batch."""
    return math.prod(rows if extent == BATCH else extent for extent in value.shape) * np.dtype(value.dtype).itemsize
