"""Data-parallel jobs and their plans, for the tests of what plans them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.model.graph import Graph
from p2pnn.plan.cost import Links, Workload
from p2pnn.plan.exchange import Exchange, exchange
from p2pnn.plan.profile import Profile
from p2pnn.plan.roles import Roles, place
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Space

from .builder import job, mesh, node

ABC = [node("a"), node("b"), node("c")]
ABCD = [*ABC, node("d")]


def dealt(
    graph: Graph, *, micro_batches: int = 1, batch_size: int = 64, spec: dict[str, Any] | None = None, **data: Any
) -> JobSpec:
    """A data-parallel job; `data` are settings of DataParallel (one replica of each shard without a wish), `spec` of JobSpec."""
    data = {"replicas": 1, **data}
    settings = {"micro_batches": micro_batches, "batch_size": batch_size, **(spec or {})}
    return job(graph, parallel="data", data=DataParallel(**data), **settings)


def exchanged(spec: JobSpec, shards: int = 1) -> Exchange:
    return exchange(spec, cut(Space.of(spec.graph), shards, spec.data.cut if spec.data else "equal"))


def placed(
    spec: JobSpec,
    nodes: Sequence[Profile] = ABC,
    workers: Sequence[int] = (0, 1, 2),
    shards: int = 1,
    links: Links | None = None,
    copies: int = 1,
    **more: Any,
) -> Roles:
    """Roles of a job that fits. Raises AssertionError where it does not."""
    links = links or mesh(*nodes)
    found = place(Workload(spec), spec, exchanged(spec, shards), nodes, workers, links, copies, **more)
    assert found is not None
    return found
