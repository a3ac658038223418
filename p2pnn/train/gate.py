"""The gate: which tensors a node takes from its peers, asked before a byte of a body is received.

Credits keep honest peers within the frames; the gate keeps everyone within them. It knows which transfers end here and
from whom, the window of micro-batches that have a free frame, and what has come already, so a wrong or repeated
announcement costs no memory and overwrites nothing.
"""

from __future__ import annotations

from p2pnn.job.plan import Plan
from p2pnn.job.segment import transfers
from p2pnn.model.graph import Graph
from p2pnn.train.frames import Layout


class Gate:
    """One node's side of a running job; lives in the daemon beside the arena.

    senders: the plan's nodes that send to this one; they must be told each new count of retired micro-batches.
    """

    def __init__(self, graph: Graph, plan: Plan, node_index: int, layout: Layout) -> None:
        self._layout = layout
        self._sources = {t.index: t.source for t in transfers(graph, plan.assignment) if t.target == node_index}
        self.senders = tuple(sorted(set(self._sources.values())))
        self._taken: set[tuple[int, int]] = set()
        self._retired = 0

    def refusal(self, transfer: int, micro_batch: int, source: int, nbytes: int) -> str:
        """Why a tensor from node `source` may not come in, as one sentence; empty where it may."""
        what = f"tensor {transfer} of micro-batch {micro_batch}"
        expected = self._sources.get(transfer)
        if expected != source:
            return f"{what} is not expected from node {source} of the plan"
        if not self._retired <= micro_batch < self._retired + self._layout.frames:
            last = self._retired + self._layout.frames - 1
            return f"{what} is outside the window {self._retired} … {last}"
        if (transfer, micro_batch) in self._taken:
            return f"{what} came twice"
        size = self._layout.offsets[transfer][1]
        return "" if nbytes == size else f"{what} has {nbytes:,} bytes instead of {size:,}"

    def take(self, transfer: int, micro_batch: int) -> tuple[int, int]:
        """Let a tensor in that was not refused; its (offset, bytes) in the arena."""
        self._taken.add((transfer, micro_batch))
        return self._layout.place(transfer, micro_batch)

    def retired(self, count: int) -> None:
        """The executor is done with all micro-batches below `count`."""
        self._retired = count
        self._taken = {key for key in self._taken if key[1] >= count}
