"""What the parts of `./run bench ps` share: data-parallel jobs of ours, and their speed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import _classification as work
from benchmarks import _jobs
from benchmarks._jobs import Mesh
from benchmarks.mesh import RATE, Effort, told
from p2pnn.cli import prepare, submit
from p2pnn.cli.request import DataParallelPart
from p2pnn.errors import P2pnnError
from p2pnn.zoo import mlp


@dataclass(frozen=True)
class Kind:
    """A job: steps of `batch` rows over all workers together. data: None for one node alone."""

    batch: int
    data: DataParallelPart | None
    hidden: tuple[int, ...] = work.WIDTHS[1:-1]


def prepared(rows: work.Rows, kind: Kind, steps: int) -> submit.Prepared:
    """A job of at least so many steps: of as many rows as they take or, where there are fewer, of whole epochs."""
    rows = {name: array[: steps * kind.batch] for name, array in rows.items()}
    epochs = math.ceil(steps / (len(rows["label"]) // kind.batch))
    nodes = 1 if kind.data is None else 0
    asked = work.request(kind.batch, 1, epochs, RATE, nodes, "sync", kind.data)
    model = mlp.build((work.WIDTHS[0],), work.WIDTHS[-1], hidden=kind.hidden, dropout=0.0)
    return prepare.training(asked, model=model, arrays=rows)


def train(mesh: Mesh, job: submit.Prepared, *, apart: bool = True) -> Effort:
    """Run a job to its end. Raises P2pnnError where workers and shards are to be `apart` and the planner chose otherwise."""
    began, seen = time.time(), list[dict[str, Any]]()
    _jobs.run(mesh, job, seen.append)
    if apart:
        _check_roles(next((event["plan"] for event in seen if event["kind"] == "plan"), {}))
    steps = [event for event in seen if event["kind"] == "progress"]
    firsts = {event["step"]: event for event in reversed(steps)}
    events = [event for event in seen if event["kind"] != "progress" or event is firsts[event["step"]]]
    return told(events, job.spec.batch_size, began)


def _check_roles(plan: dict[str, Any]) -> None:
    workers = {node for replica in plan.get("replicas", ()) for node in replica["nodes"]}
    shared = workers & {home["nodes"][0] for home in plan.get("shards", ())}
    if shared:
        raise P2pnnError(f"the planner let a worker's node hold a shard as well ({plan['reasons']})")
