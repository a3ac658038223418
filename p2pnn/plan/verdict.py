"""A data-parallel plan in words: who does what, what a step waits for, and the first line, which says when it loses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2pnn.job.assignment import REPLICATED_SHARDS_MAX
from p2pnn.job.plan import Predicted
from p2pnn.job.spec import JobSpec
from p2pnn.plan.describe import number, rate, size
from p2pnn.plan.exchange import Exchange, settings_of
from p2pnn.plan.pace import Bound, Pace
from p2pnn.plan.roles import Roles
from p2pnn.ps.consistency import is_bitwise


def role(worker: int, shards: Sequence[int], backups: Sequence[int] = (), layers: str = "") -> str:
    """`worker 0; shard 1`, `worker 0: conv1 … fc1; shard 1`, `shards 2, 3`, `shard 0 (backup of shard 1)`, `backup of shard 1`.
    worker: −1 for none; layers: where it is cut."""
    parts = [f"worker {worker}{f': {layers}' if layers else ''}"] if worker >= 0 else []
    copied = f"backup of {_numbered(backups)}" if backups else ""
    if shards:
        parts.append(_numbered(shards) + (f" ({copied})" if copied else ""))
    elif copied:
        parts.append(copied)
    return "; ".join(parts)


def workers(count: int, segments: int) -> str:
    """`2 workers of 3 nodes each`."""
    return f"{count} workers of {segments} nodes each" if count > 1 else f"one worker of {segments} nodes"


def _numbered(shards: Sequence[int]) -> str:
    return f"shard{'s' * (len(shards) > 1)} {', '.join(map(str, shards))}"


def why(compute_s: float | None, share: float) -> str:
    """compute_s: of a worker's step; share: of the parameters that its shards hold."""
    parts = [] if compute_s is None else [f"{duration(compute_s)} of computing per step"]
    if share:
        parts.append(f"its shards hold {100 * share:.0f} % of the parameters")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`1.12 ms`, `364 ms`, `3.77 s`."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def shareable(batch_size: int, micro_batches: int, workers: int) -> str:
    """What would share a step's micro-batches evenly among so many workers, or the other way round."""
    fewer = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    pieces = [m for m in range(workers, batch_size + 1, workers) if batch_size % m == 0]
    ways = f"take {' or '.join(map(str, fewer))} workers"
    if pieces:
        near = min(pieces, key=lambda m: (abs(m - micro_batches), m))
        return f"{ways}, or --micro-batches {near}"
    return f"{ways}, or a --batch-size that {workers} divides, with --micro-batches {workers}"


PROMISES = {
    "async": "each worker's gradient is an update of its own, from parameters that others may have changed since; the result "
    "does not repeat bit for bit",
    "ssp": "each worker's gradient is an update of its own, and none gets further ahead of the slowest than that; the result "
    "does not repeat bit for bit",
    "sync": "one update per step, from the gradients of all workers",
    "local": "each worker takes steps of its own, and the shards then one along the mean of the differences",
}


def reasons(spec: JobSpec, there: Exchange, roles: Roles, speed: Pace, fitting: int, candidates: int) -> Iterator[str]:
    """All sentences but the first line. fitting, candidates: how many nodes could be workers, and how many there were."""
    data, how = settings_of(spec), there.how
    yield f"{how}: {PROMISES[how.kind]}" + (_bits(spec, roles.workers) if how.kind == "sync" and not how.backup else "")
    if how.backup:
        yield f"the first {roles.workers - how.backup} of {roles.workers} gradients make a step; the others are dropped"
    pushed, fetched = size(there.pushed_per_step), size(there.fetched_per_step)
    yield f"each worker pushes {pushed} ({data.push}) and fetches {fetched} ({data.pull}) per step, on average"
    yield f"a step waits most for this: {bound(speed.bound, roles)}"
    if not data.shards:
        count = len(roles.homes)
        many = "one shard" if count == 1 else f"{number(count)} shards"
        most = min(spec.node_count or candidates, candidates, len(there.sharding.space.entries))
        more = "more would be slower" if count < most else "as many as there can be"
        if roles.segments > 1 and count <= roles.segments:
            more = "each part of the model has one of its own"
        yield f"{many}, {'each on another node' if count > 1 else f'on {roles.nodes[roles.homes[0]].name}'}: {more}"
    if roles.backups:
        copied = size(roles.workers * there.pushed_per_step)
        yield (
            f"each shard has a backup on another node, and an update counts when both hold it: {copied} more travel per step of "
            "all workers (--replicas 1 leaves that away)"
        )
    elif not data.replicas and len(roles.homes) > REPLICATED_SHARDS_MAX:
        yield f"no shard has a backup, since those of at most {REPLICATED_SHARDS_MAX} shards can have one"
    if roles.segments == 1 and not data.workers and roles.workers < fitting:
        yield (
            f"{roles.workers} of {fitting} nodes compute: {spec.micro_batches} micro-batches cannot be shared evenly by more"
            if how.kind == "sync"
            else f"{roles.workers} of {fitting} nodes compute: the others' memory is needed for shards"
        )
    if roles.segments == 1 and fitting < candidates and not spec.node_count:
        yield f"{candidates - fitting} of {candidates} nodes have no room for the whole model"
    if len({p.fingerprint for p in roles.nodes}) > 1:
        yield (
            "the nodes differ in library versions or processors: the result is equal to 1e-5, not bitwise, to a run on one node"
            if how.kind == "sync"
            else "the nodes differ in library versions or processors"
        )


def _bits(spec: JobSpec, workers: int) -> str:
    if is_bitwise(spec, workers):
        return "; the result is, bit for bit, that of one node with as many micro-batches"
    return (
        "; the result has other bits than one node's (equal ones take float32, 1, 2, 4 … micro-batches per worker, and no batch "
        "normalization)"
    )


def bound(found: Bound, roles: Roles) -> str:
    """What a round waits for, as a clause."""
    node = roles.nodes[found.node]
    spent = duration(found.seconds)
    match found.kind:
        case "link":
            return f"the link of {node.name} is busy for {spent} with what is pushed and fetched per round"
        case "shards":
            return f"{node.name} computes for {spent} per round on its shards"
        case "cores":
            sharing = sum(p.machine == node.machine for p in roles.nodes) if node.machine else 1
            cores = f"{node.cores if node.machine else 2} cores"
            return (
                f"{sharing} nodes share the {cores} of one machine" if sharing > 1 else f"{node.name} has but {cores}"
            )
        case "trip":
            return f"the round trip between {node.name} and the shards takes longer than its computing"
        case "own":
            return (
                f"each worker computes all the time, with its push and its fetch {spent} per step on the average, and longest on "
                f"{node.name}"
            )
        case _ if roles.segments > 1:
            return f"a step of the worker on {node.name} and others takes {spent}, with what it pushes and fetches" + (
                ", and the others wait for it" if roles.workers > 1 else ""
            )
        case _:
            return f"{node.name} is busy for {spent} per round with its passes, its push and its fetch" + (
                ", and the others wait for it" if roles.workers > 1 else ""
            )


def hybrid_headline(predicted: Sequence[Predicted], because: str) -> str:
    """The first line of a plan whose workers are cut over nodes. predicted: `hybrid`, and the other ways that can be."""
    by_way = {found.way: found for found in predicted}
    single, hybrid = by_way.get("single"), by_way["hybrid"]
    parts = [f"one node {rate(single.samples_per_s)} samples/s" if single else "no single node has room for it"]
    for way, text in (("model", "model parallel"), ("data", "data parallel")):
        if way in by_way:
            parts.append(f"{text} {rate(by_way[way].samples_per_s)} over {_nodes(len(by_way[way].nodes))}")
    unit = "" if single else " samples/s"
    parts.append(f"hybrid {rate(hybrid.samples_per_s)}{unit} over {_nodes(len(hybrid.nodes))}")
    line = ", ".join(parts)
    fastest = max(predicted, key=lambda found: found.samples_per_s)
    if fastest.samples_per_s > hybrid.samples_per_s:
        instead = {
            "single": f"{fastest.nodes[0]} alone (--parallel model --nodes 1)",
            "model": "the model cut over nodes (--parallel model)",
            "data": "workers that hold the whole model (--parallel data)",
        }[fastest.way]
        return f"{line}: slower than {instead}, because {because}"
    if single:
        return f"{line}: {hybrid.samples_per_s / single.samples_per_s:.1f} times as fast as {single.nodes[0]} alone"
    return line


def headline(predicted: Sequence[Predicted], because: str, remedy: str | None, best: str) -> str:
    """The first line: one node, the model cut, and this, all predicted. predicted: `data`, and `single` and `model` where they
    can be.

    because: what this waits for; remedy: settings that would win, where it loses, or None where none were tried; best: the best
    single node's name.
    """
    by_way = {found.way: found for found in predicted}
    single, model, data = by_way.get("single"), by_way.get("model"), by_way["data"]
    parts = [f"one node {rate(single.samples_per_s)} samples/s" if single else "no single node has room for it"]
    if model:
        parts.append(f"model parallel {rate(model.samples_per_s)} over {len(model.nodes)} nodes")
    unit = "" if single else " samples/s"
    parts.append(f"data parallel {rate(data.samples_per_s)}{unit} over {_nodes(len(data.nodes))}")
    line = ", ".join(parts)
    if single and data.samples_per_s < single.samples_per_s:
        wins = (
            "--parallel model" if model and model.samples_per_s > single.samples_per_s else "--parallel model --nodes 1"
        )
        if remedy is None:
            return f"{line}: slower than {best} alone, because {because}"
        instead = remedy or f"no other setting of it would win here, {wins} does"
        return f"{line}: slower than {best} alone, because {because}; {instead}"
    if model and data.samples_per_s < model.samples_per_s:
        return f"{line}: slower than the model cut (--parallel model), because {because}"
    if single:
        return f"{line}: {data.samples_per_s / single.samples_per_s:.1f} times as fast as {best} alone"
    return line


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"
