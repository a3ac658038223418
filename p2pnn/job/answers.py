"""What the nodes' answers to one command of the script make together. They come from peers: raises msgspec.MsgspecError
for a result that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from p2pnn.job.checkpoint import Part
from p2pnn.job.progress import finished
from p2pnn.job.records import SplitResult
from p2pnn.job.script import Done, Evaluation, Predictions
from p2pnn.job.spec import JobSpec
from p2pnn.types import NodeId

Answers = Mapping[NodeId, Done]


def evaluation(spec: JobSpec, split: str, nodes: Sequence[NodeId], answers: Answers) -> SplitResult:
    """The split's loss (mean over its rows) and metrics; each comes from the node that holds it. nodes: in the plan's order."""
    loss_sum, rows = 0.0, 0
    sums: dict[str, tuple[float, float]] = {}
    for node in nodes:
        if answers[node].result:
            found = msgspec.msgpack.decode(answers[node].result, type=Evaluation)
            loss_sum += found.loss_sum
            rows = max(rows, found.rows)
            sums.update(found.metrics)
    metrics = {m.name: finished(m.kind, *sums[m.name]) for m in spec.graph.metrics if m.name in sums}
    loss = loss_sum / rows if spec.graph.losses and rows else None
    counts = {name: round(sums[name][1]) for name in metrics if math.isfinite(sums[name][1])}
    return SplitResult(split, rows, loss, metrics, counts)


def predictions(nodes: Sequence[NodeId], answers: Answers) -> Predictions:
    """The outputs of all nodes; each output is computed on one."""
    outputs = [msgspec.msgpack.decode(answers[n].result, type=Predictions).outputs for n in nodes if answers[n].result]
    return Predictions({name: chunks for found in outputs for name, chunks in found.items()})


def scores(nodes: Sequence[NodeId], answers: Answers) -> bytes:
    """Of a Sample, from the node that has them."""
    return next((answers[node].result for node in nodes if answers[node].result), b"")


def parts(nodes: Sequence[NodeId], answers: Answers) -> tuple[Part, ...]:
    """The parts of a checkpoint, in the plan's order."""
    return tuple(msgspec.msgpack.decode(answers[node].result, type=Part) for node in nodes)
