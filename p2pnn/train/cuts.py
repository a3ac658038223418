"""Where every tensor of a node's part of a cut lies in memory: the bytes that executors copy and buddies hold.

A part is one stretch of float32, little-endian, in ONNX's layout: the node's parameters and state, the optimizer's arrays, and
where its updates run d behind (`async:K`) its parameters after each of the d updates before the newest. So it holds what a
part of a checkpoint holds (`executor.parts`), in a place that follows from (graph, plan, node) alone, and whoever has the
bytes and knows the plan can write that file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.model.graph import Parameter
from p2pnn.train.optimizers import SLOTS, slot_name

COUNTER_BYTES: Final = 64
"""In front of the slots in an arena: the number of updates done (int64), in a cache line of its own."""

CUTS_MIN: Final = 2
CUTS_MAX: Final = 8
CUTS_BYTES: Final = 4 << 20
"""At least two cuts are kept, so that one is whole while the next is on its way. Where parts are small, more are, up to this
many bytes: their steps are short, and nodes that share a machine are then more than one cut apart for moments."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a part. offset: in float32 numbers from the part's beginning. behind: of a parameter, how many updates
    before the cut's; slot: the optimizer's, or empty."""

    parameter: Parameter
    offset: int
    slot: str = ""
    behind: int = 0

    @property
    def count(self) -> int:
        return math.prod(self.parameter.shape)

    @property
    def name(self) -> str:
        """As parts of checkpoints name it; not for older versions, whose name holds their number."""
        return slot_name(self.slot, self.parameter.name) if self.slot else self.parameter.name


@dataclass(frozen=True, slots=True)
class Places:
    """One node's part. named: parameters and state, whose bits count; more: what else the run goes on from."""

    named: tuple[Entry, ...]
    more: tuple[Entry, ...]
    count: int

    @property
    def nbytes(self) -> int:
        return 4 * self.count

    @property
    def kept(self) -> int:
        """How many cuts are kept of it."""
        return max(CUTS_MIN, min(CUTS_MAX, CUTS_BYTES // max(1, self.nbytes)))

    @property
    def slots(self) -> int:
        """Places for whole parts in an arena: one is written while as many as are kept are."""
        return self.kept + 1


def places(spec: JobSpec, plan: Plan, index: int) -> Places:
    """The part of node `index`: float32 numbers in the order of `executor.weights.Weights.save`."""
    read = {name for op, node in enumerate(plan.assignment) if node == index for name in spec.graph.ops[op].inputs}
    parameters = [p for p in spec.graph.parameters if p.name in read]
    end = 0

    def entry(parameter: Parameter, slot: str = "", behind: int = 0) -> Entry:
        nonlocal end
        made = Entry(parameter, end, slot, behind)
        end += made.count
        return made

    named = [entry(p) for p in (*parameters, *(p for p in spec.graph.state if p.name in read))]
    more = [entry(p, slot) for slot in SLOTS[spec.optimizer.kind] for p in parameters]
    delay = plan.delays[index] if plan.delays else 0
    more += [entry(p, behind=behind) for behind in range(delay, 0, -1) for p in parameters]
    return Places(tuple(named), tuple(more), end)
