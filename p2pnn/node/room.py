"""How the memory that a part shares with its executors is divided, and whether the plan by which it is fits.

With the executor that computes: tensors, the ring of spans, snapshots or, of a data-parallel run, landing places and push bodies
(`ps.layout`). With the one that serves shards: slots of pushes, and what that executor needs behind them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from p2pnn.errors import UsageError
from p2pnn.executor.memory import available_bytes
from p2pnn.job.plan import Plan
from p2pnn.job.spans import RING_BYTES
from p2pnn.job.spec import JobSpec
from p2pnn.ps.consistency import check_spec
from p2pnn.ps.layout import WorkerLayout, worker_layout
from p2pnn.train.cuts import COUNTER_BYTES, Places, places
from p2pnn.train.frames import Layout, layout
from p2pnn.types import NodeId

log = logging.getLogger("p2pnn.place")


@dataclass(frozen=True, slots=True)
class Room:
    """tensors: from the first byte on, then the ring; snapshots: None for a part that takes none. exchange: with the shards of a
    data-parallel run, whose parts take none; else None."""

    tensors: Layout
    snapshots: Places | None
    exchange: WorkerLayout | None = None

    @property
    def ring(self) -> int:
        """Where the ring begins, of RING_BYTES."""
        return self.tensors.arena_bytes

    @property
    def counter(self) -> int:
        """Where the counter of updates lies, and the slots of snapshots behind it; −1 without them."""
        return self._end if self.snapshots else -1

    @property
    def landings(self) -> int:
        """Where the landing places begin; −1 in a run without shards."""
        return self.exchange.start if self.exchange else -1

    @property
    def nbytes(self) -> int:
        if self.exchange is not None:
            return self.exchange.stop
        found = self.snapshots
        return self.ring + RING_BYTES if found is None else self._end + COUNTER_BYTES + found.slots * found.nbytes

    def slot(self, number: int) -> tuple[int, int]:
        """(offset, bytes) of a snapshot."""
        assert self.snapshots is not None
        return self._end + COUNTER_BYTES + number * self.snapshots.nbytes, self.snapshots.nbytes

    @property
    def _end(self) -> int:
        return -(-(self.ring + RING_BYTES) // COUNTER_BYTES) * COUNTER_BYTES


def divide(spec: JobSpec, plan: Plan, index: int) -> Room:
    """For node `index` of the plan, which computes. Looks at how much memory is free: snapshots are left out where they do not
    fit. Raises PlanError for parameters that cannot be cut into so many shards."""
    if plan.replicas:
        alone = plan.replica(plan.worker_of(index))
        tensors = layout(spec.graph, alone, plan.position(index), spec.rows_per_micro_batch)
        return Room(tensors, None, worker_layout(spec, plan, index, Room(tensors, None).nbytes))
    tensors = layout(spec.graph, plan, index, spec.rows_per_micro_batch)
    found = places(spec, plan, index) if spec.kind == "train" and spec.snapshot_steps else None
    if found is not None and found.slots * found.nbytes > available_bytes() - plan.nodes[index].memory_bytes:
        log.warning("no room for snapshots bytes=%d", found.slots * found.nbytes)
        found = None
    return Room(tensors, found)


def check(spec: JobSpec, plan: Plan, nodes: list[NodeId], index: int, here: NodeId) -> None:
    """Raises UsageError where the plan is none of this spec, over these nodes, with this one at `index`, or where a data-parallel
    run cannot be with so many workers and shards."""
    legal = (
        len(plan.assignment) == len(spec.graph.ops)
        and _roles_fit(spec, plan)
        and all(0 <= node < len(plan.replica(0).nodes) for node in plan.assignment)
        and [share.node for share in plan.nodes] == nodes
        and index < len(nodes)
        and nodes[index] == here
        and plan.frames >= 1
    )
    if legal and spec.data is not None:
        check_spec(spec, len(plan.replicas), len(plan.shards))
    if not legal:
        raise UsageError("the plan that it was sent does not fit the job's model and nodes; start the job again")


def _roles_fit(spec: JobSpec, plan: Plan) -> bool:
    """Whether nodes have the roles that a run of this kind needs: replicas are alike and share no node, shards have homes."""
    if spec.data is None:
        return not plan.replicas and not plan.shards
    members = range(len(plan.nodes))
    computing = [node for replica in plan.replicas for node in replica.nodes]
    groups = [replica.nodes for replica in plan.replicas] + [home.nodes for home in plan.shards]
    return (
        bool(plan.replicas and plan.shards)
        and len({len(replica.nodes) for replica in plan.replicas}) == 1
        and len(set(computing)) == len(computing)
        and all(nodes and len(set(nodes)) == len(nodes) and all(node in members for node in nodes) for nodes in groups)
        and all(plan.worker_of(node) >= 0 or plan.served_by(node) for node in members)
    )
