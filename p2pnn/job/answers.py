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

_parts = msgspec.msgpack.Decoder(Part | tuple[Part, ...])


def of_node(dones: Sequence[Done]) -> Done:
    """What the processes of one node answered to one command, as one answer: the first error, the one result, or the parts of a
    checkpoint together. Of batches that were trained again only the one knows that computes."""
    first, uneven = dones[0], max(done.uneven for done in dones)
    results = [done.result for done in dones if done.result]
    error = next((done.error for done in dones if done.error), "")
    if len(results) < 2 or error:
        return Done(first.sequence, b"" if error else b"".join(results), error, uneven)
    parts = [part for result in results for part in _parts_in(result)]
    return Done(first.sequence, msgspec.msgpack.encode(parts), uneven=uneven)


def evaluation(spec: JobSpec, split: str, nodes: Sequence[NodeId], answers: Answers) -> SplitResult:
    """The split's loss (mean over its rows) and metrics; each comes from the node that holds it, of each model replica. nodes: in
    the plan's order; those without an answer take part no more."""
    loss_sum, rows = 0.0, 0
    sums: dict[str, tuple[float, float]] = {}
    for node in nodes:
        if node in answers and answers[node].result:
            found = msgspec.msgpack.decode(answers[node].result, type=Evaluation)
            loss_sum += found.loss_sum
            rows += found.rows
            for name, (total, count) in found.metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + count)
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


def parts(nodes: Sequence[NodeId], answers: Answers) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """The parts of a checkpoint, in the plan's order, and which node of the plan wrote each. A node may have written none, or
    several, where it computes and holds shards."""
    found: list[tuple[Part, int]] = []
    for index, node in enumerate(nodes):
        if node in answers and answers[node].result:
            found += [(part, index) for part in _parts_in(answers[node].result)]
    if not found:
        raise msgspec.ValidationError("no node wrote a part of the checkpoint")
    return tuple(part for part, _ in found), tuple(index for _, index in found)


def _parts_in(result: bytes) -> tuple[Part, ...]:
    found = _parts.decode(result)
    return (found,) if isinstance(found, Part) else found
