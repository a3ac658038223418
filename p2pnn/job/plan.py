"""The plan of a job: which op runs on which node, and what follows from that by pure functions.

Everything that nodes must agree on (segments, transfers, their numbering) is computed from (graph, assignment) by the
functions in `job.segment`, so only the assignment travels.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from p2pnn.job.spec import JobSpec
from p2pnn.types import NodeId

FORMAT: Final = 1


class NodeShare(msgspec.Struct, frozen=True):
    """One node's part of a plan, as it is shown to a person.

    layers: a short reading such as `conv1 … pool2`. memory_bytes: parameters, gradients, optimizer state, frames
    and workspace. compute_s: predicted seconds per step. sends: (peer's name, bytes per step, forward and backward).
    copied_bytes: of pushes to shards of this node, sent on to their backups, per step of all workers.
    """

    node: NodeId
    name: str
    layers: str
    parameters: int
    memory_bytes: int
    memory_bytes_max: int
    compute_s: float
    sends: tuple[tuple[str, int, int], ...] = ()
    why: str = ""
    copied_bytes: int = 0


class Replica(msgspec.Struct, frozen=True):
    """One model replica of a data-parallel run. nodes: indices into the plan's nodes; `Plan.assignment` counts within these."""

    nodes: tuple[int, ...]


class ShardHome(msgspec.Struct, frozen=True):
    """Who holds one shard of the parameters. nodes: indices into the plan's nodes: the primary when the run begins, then its
    backup, if there is one."""

    nodes: tuple[int, ...]


class Predicted(msgspec.Struct, frozen=True):
    """One way to run the job: on one node (`single`), with its `model` cut, its `data` dealt out, or both (`hybrid`); nodes by
    name."""

    way: str
    nodes: tuple[str, ...]
    samples_per_s: float


class Plan(msgspec.Struct, frozen=True):
    """assignment[i] is the index into `nodes` of the node that runs ops[i]. frames: micro-batches in flight per node.

    samples_per_s is predicted for this plan, best_single_samples_per_s for the fastest single node on which the job
    fits (0.0 where it fits on none). `reasons` are sentences: why cut here, what a warning means.
    delays: per node, how many updates behind its mini-batches run (`async:K`, see `job.segment.delays`); () for `sync`.
    bitwise is False when the nodes' numeric fingerprints differ. replicas, shards: of a data-parallel run; () of any other.
    predicted: the ways that were compared, this plan's among them; () where none were.
    """

    nodes: tuple[NodeShare, ...]
    assignment: tuple[int, ...]
    frames: int
    samples_per_s: float
    best_single_samples_per_s: float
    best_single_node: str = ""
    bitwise: bool = True
    reasons: tuple[str, ...] = ()
    format: int = FORMAT
    delays: tuple[int, ...] = ()
    replicas: tuple[Replica, ...] = ()
    shards: tuple[ShardHome, ...] = ()
    predicted: tuple[Predicted, ...] = ()

    def worker_of(self, index: int) -> int:
        """Which replica node `index` computes for; −1 where it computes for none. Without replicas all compute for replica 0."""
        if not self.replicas:
            return 0
        return next((number for number, replica in enumerate(self.replicas) if index in replica.nodes), -1)

    def position(self, index: int) -> int:
        """Where node `index`, which computes, stands within its replica."""
        return self.replicas[self.worker_of(index)].nodes.index(index) if self.replicas else index

    def served_by(self, index: int) -> tuple[int, ...]:
        """The shards that node `index` holds, as their primary or as a backup."""
        return tuple(number for number, home in enumerate(self.shards) if index in home.nodes)

    @property
    def copies(self) -> int:
        """How many nodes hold each shard; 0 without shards."""
        return max((len(home.nodes) for home in self.shards), default=0)

    def replica(self, number: int) -> Plan:
        """The plan of one replica by itself: its nodes alone, no shards."""
        if not self.replicas:
            return self
        nodes = tuple(self.nodes[index] for index in self.replicas[number].nodes)
        return msgspec.structs.replace(self, nodes=nodes, replicas=(), shards=())


def cut(spec: JobSpec, plan: Plan) -> str:
    """What of a plan the bits of a run depend on, as a short word: the same word, the same bits; empty for `sync`, whose bits
    depend on nothing.

    With several mini-batches in flight those are the delay of each op and, where gradients are clipped, who owns which.
    """
    if spec.in_flight < 2:
        return ""
    late = [plan.delays[node] for node in plan.assignment]
    owners = plan.assignment if spec.optimizer.clip_norm else ()
    return hashlib.sha256(msgspec.msgpack.encode((late, owners))).hexdigest()[:16]
