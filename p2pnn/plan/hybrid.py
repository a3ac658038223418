"""Hybrid parallelism planned: model replicas that are cut over several nodes each, and the shards of their parameters.

Of R · k nodes, the fastest first, each replica gets one of each R in a row, so that replicas are about equal; all are cut alike.
The cut is the best one of the slowest replica (`partition`, played by `predict`), made with what a worker's node takes: it
keeps no optimizer's state, but what it exchanges with the shards of its own layers. Without a wish k rises from 2 on, with as
many replicas as there are nodes for, until a finer cut that fits is no faster by `pace` than the one before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pnn.errors import PlanError
from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.spec import JobSpec
from p2pnn.plan import describe, planner, search, verdict
from p2pnn.plan.cost import Links, Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.data import TOLERANCE, copied_bytes
from p2pnn.plan.describe import size
from p2pnn.plan.exchange import (
    Exchange,
    check_shards,
    exchange,
    segment_bytes,
    server_bytes,
    settings_of,
    shard_counts,
    worker_bytes,
)
from p2pnn.plan.pace import CutPasses, Pace, pace
from p2pnn.plan.partition import best_cuts, stages_max
from p2pnn.plan.predict import predict
from p2pnn.plan.profile import Profile
from p2pnn.plan.roles import Roles, by_speed, place
from p2pnn.ps.consistency import REPLICAS_MAX
from p2pnn.ps.sharding import cut, cut_segments
from p2pnn.ps.space import Space
from p2pnn.train.schedule import owned_parameters

ROOMY: Final = 1 << 62
"""Bytes of memory of a node that could have any part of a model: for what a cut would need."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Model replicas that are cut alike. nodes: indices into the candidates, replica by replica, in the order of segments."""

    count: int
    nodes: tuple[int, ...]
    assignment: tuple[int, ...]
    frames: int

    @property
    def segments(self) -> int:
        return len(self.nodes) // self.count

    def of(self, replica: int) -> tuple[int, ...]:
        return self.nodes[replica * self.segments : (replica + 1) * self.segments]


@dataclass(frozen=True, slots=True)
class Found:
    """A choice: with what it exchanges, the roles, and the predicted pace."""

    there: Exchange
    roles: Roles
    pace: Pace
    replicas: Replicas


def choose(work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links) -> Found:
    """The replicas and shards that the job asks for, or the fastest. candidates: by name. Raises PlanError, UsageError."""
    check_shards(spec, len(spec.graph.parameters))
    fast = by_speed(work, candidates)
    if spec.node_count:
        candidates = [candidates[n] for n in sorted(fast[: spec.node_count])]
        fast = by_speed(work, candidates)
    sizes = list(_sizes(work, spec, candidates))
    found: list[Found] = []
    for segments, most in sizes:
        for count in _counts(spec, most):
            one = _placed(work, spec, candidates, fast, count, segments, links)
            if one is not None:
                found.append(one)
                break
        if len(found) > 1 and found[-1].pace.samples_per_s <= found[-2].pace.samples_per_s:
            break  # finer cuts are for models that fit no coarser one
    if not found:
        raise PlanError(_no_room(work, spec, candidates, fast, sizes, links))
    return max(found, key=lambda one: (one.pace.samples_per_s, -one.roles.computing))


def _sizes(work: Workload, spec: JobSpec, candidates: Sequence[Profile]) -> Iterator[tuple[int, int]]:
    """(segments, how many replicas there are nodes for at most). Raises PlanError where there is none."""
    data, there = settings_of(spec), len(candidates)
    names = ", ".join(p.name for p in candidates)
    parts, asked = stages_max(work), data.segments if data.segments > 1 else 0
    if parts < 2:
        raise PlanError(
            "the model cannot be cut over nodes: it has no two parts with parameters of their own; say --parallel data"
        )
    if asked > parts:
        raise PlanError(
            f"--segments {asked}, but the model can be cut into {parts} parts that have parameters; take at most "
            f"--segments {parts}"
        )
    if data.shards and data.shards < max(2, asked):
        least = max(2, asked)
        raise PlanError(
            f"--shards {data.shards} with workers of {least} nodes each: every node of a worker speaks to shards of its own "
            f"layers; take --shards {least} or more, or leave it away"
        )
    least = asked or 2
    workers = data.workers or 1
    if workers * least > there:
        them = f"{workers} workers of {least} nodes each take" if workers > 1 else f"a worker of {least} nodes takes"
        if spec.node_count:
            raise PlanError(
                f"{them} {workers * least} nodes, but --nodes {spec.node_count} allows fewer; change one of them"
            )
        are = f"is one: {names}" if there == 1 else f"are {there}: {names}"
        raise PlanError(
            f"{them} {workers * least} nodes, but there {are}; start more, or ask for fewer (--workers, --segments)"
        )
    for segments in [asked] if asked else range(2, min(parts, there // workers) + 1):
        if not data.shards or segments <= data.shards:
            yield segments, data.workers or there // segments


def _counts(spec: JobSpec, most: int) -> Iterator[int]:
    """Numbers of replicas to try, the preferred one first. Raises PlanError where what is asked for shares no micro-batches."""
    data, pieces = settings_of(spec), spec.micro_batches
    in_shares = data.consistency == "sync"
    if data.workers and in_shares and pieces % data.workers:
        raise PlanError(
            f"{data.workers} workers cannot share the {pieces} micro-batches of a step evenly, which sync needs: "
            f"{verdict.shareable(spec.batch_size, pieces, data.workers)}"
        )
    if data.workers:
        yield data.workers
        return
    yield from (n for n in range(most, 0, -1) if not in_shares or pieces % n == 0)


def _placed(
    work: Workload,
    spec: JobSpec,
    candidates: Sequence[Profile],
    fast: Sequence[int],
    count: int,
    segments: int,
    links: Links,
) -> Found | None:
    """The best cut of so many replicas, and homes for the shards; None where memory does not suffice.

    Where batches are leased a start goes on without any node, if another worker is left; else without one that only serves, and
    no other. So unless it is asked for, shards have backups in the first case, and where nodes that compute nothing hold them.
    """
    replicas = _cut(spec, candidates, fast, count, segments, links)
    if replicas is None:
        return None
    data = settings_of(spec)
    passes = _passes(spec, replicas, candidates, links)
    can_lose = count > 1 and data.consistency.partition(":")[0] in ("async", "ssp")
    for copies in [data.replicas] if data.replicas else range(REPLICAS_MAX, 0, -1):
        found = _best_shards(work, spec, candidates, replicas, passes, links, copies)
        is_worth_it = can_lose or (found is not None and max(found.roles.homes) >= found.roles.computing)
        if found is not None and (data.replicas or copies == 1 or is_worth_it):
            return found
    return None


def _best_shards(
    work: Workload,
    spec: JobSpec,
    candidates: Sequence[Profile],
    replicas: Replicas,
    passes: CutPasses,
    links: Links,
    copies: int,
) -> Found | None:
    """As many shards as asked for, or as do not make it slower, with so many nodes for each; None where none fit."""
    data, space, segments = settings_of(spec), Space.of(spec.graph), replicas.segments
    names = owned_parameters(spec.graph, replicas.assignment, segments)
    most = max(segments, min(len(space.entries), space.size, len(candidates)))
    room = limits(candidates, spec.memory_bytes_max)
    found: list[Found] = []
    for shards in shard_counts(spec, segments, most, copies):
        there = exchange(spec, *cut_segments(space, names, shards, data.cut))
        needs = [segment_bytes(work, spec, there, replicas.assignment, s, replicas.frames) for s in range(segments)]
        if any(needs[place % segments] > room[n] for place, n in enumerate(replicas.nodes)):
            continue
        widely = data.replicas > 1
        roles = place(work, spec, there, candidates, replicas.nodes, links, copies, widely=widely, needs=needs)
        if roles is not None and (data.shards or shards == segments or len(set(roles.homes)) == shards):
            found.append(Found(there, roles, pace(work, spec, there, roles, links, passes), replicas))
    best = max((one.pace.samples_per_s for one in found), default=0.0)
    good = [one for one in found if one.pace.samples_per_s >= best * (1 - TOLERANCE)]
    return good[-1] if good else None


def _cut(
    spec: JobSpec,
    candidates: Sequence[Profile],
    fast: Sequence[int],
    count: int,
    segments: int,
    links: Links,
) -> Replicas | None:
    """All replicas cut as is best for the slowest of them; None where no cut fits its nodes."""
    work = _replica_work(spec, count)
    room = limits(candidates, spec.memory_bytes_max)
    classes = [fast[c * count : (c + 1) * count] for c in range(segments)]
    slowest = [
        msgspec.structs.replace(candidates[nodes[-1]], memory_bytes_max=min(room[n] for n in nodes), machine="")
        for nodes in classes
    ]
    for frames in planner.frames_for(work, segments):
        cuts = best_cuts(work, slowest, links, segments, frames, {}, 0, planner.PLAYED)
        if not cuts:
            continue
        choice = planner.deepen(work, search.choose(work, cuts, slowest, links, frames, {}, 0), links, 0)
        stages = [slowest.index(profile) for profile in choice.profiles]
        order = list(dict.fromkeys(choice.assignment))
        if len(order) < segments:
            return None
        nodes = tuple(classes[stages[n]][r] for r in range(count) for n in order)
        return Replicas(count, nodes, tuple(order.index(n) for n in choice.assignment), choice.frames)
    return None


def _replica_work(spec: JobSpec, count: int) -> Workload:
    """The job as one replica's nodes have it: its share of the micro-batches; no update of its own, but what is exchanged."""
    data = settings_of(spec)
    share = spec.micro_batches // count if data.consistency == "sync" else spec.micro_batches
    work = copy.copy(
        Workload(msgspec.structs.replace(spec, batch_size=share * spec.rows_per_micro_batch, micro_batches=share))
    )
    space = Space.of(spec.graph)
    there = exchange(spec, cut(space, 1, data.cut))
    more = worker_bytes(work, spec, there) - memory_bytes(work, [0] * work.count, 0, 1)
    work.kept_bytes = work.kept_bytes + more / space.size * work.parameters
    work.updated_bytes, work.update_calls = work.updated_bytes * 0.0, work.update_calls * 0.0
    return work


def _passes(spec: JobSpec, replicas: Replicas, candidates: Sequence[Profile], links: Links) -> CutPasses:
    """What the replicas' steps take, each played on its own nodes."""
    work = _replica_work(spec, replicas.count)
    steps, busy, moving, sent = [], [], [], []
    for replica in range(replicas.count):
        nodes = [candidates[n] for n in replicas.of(replica)]
        steps.append(predict(work, replicas.assignment, nodes, links, replicas.frames).step_s)
        for segment, profile in enumerate(nodes):
            mine = [op for op, node in enumerate(replicas.assignment) if node == segment]
            spent = seconds(work, profile)
            passes = (
                float((spent.forward + spent.backward)[mine].sum()) + 2 * spent.dispatch + spent.feeding(work, mine)
            )
            busy.append(work.micro_batches * passes)
            moving.append(work.micro_batches * float((spent.forward_moving + spent.backward_moving)[mine].sum()))
            sent.append(work.micro_batches * _sent_s(work, replicas.assignment, segment, nodes, links))
    return CutPasses(tuple(steps), tuple(busy), tuple(moving), tuple(sent))


def _sent_s(work: Workload, assignment: Sequence[int], segment: int, nodes: Sequence[Profile], links: Links) -> float:
    """For how long a micro-batch's values and gradients keep a node's link busy, in its busier direction."""
    out = back = 0.0
    here = nodes[segment].node
    for border in work.borders:
        if border.producer < 0:
            continue
        source = assignment[border.producer]
        for target in {assignment[reader] for reader in border.readers} - {source}:
            if segment not in (source, target):
                continue
            other = nodes[target if segment == source else source].node
            gradients = sum(assignment[reader] == target for reader in border.gradients)
            leaving, coming = (1, gradients) if segment == source else (gradients, 1)
            out += leaving * border.bytes / link(links, here, other).bytes_per_s
            back += coming * border.bytes / link(links, other, here).bytes_per_s
    return max(out, back)


def record(work: Workload, spec: JobSpec, found: Found, candidates: int) -> Plan:
    """The plan, without what it is compared with. candidates: how many nodes there were to choose from."""
    there, roles, speed, replicas = found.there, found.roles, found.pace, found.replicas
    size_of = replicas.segments
    first = roles.nodes[:size_of]
    reasons = [
        f"{verdict.workers(roles.workers, size_of)}: each holds a part of the model, and exchanges the parameters of that part "
        "alone with their shards",
        *describe.cuts(work, replicas.assignment, first, False),
        *verdict.reasons(spec, there, roles, speed, roles.workers, candidates),
    ]
    idle = candidates - len(roles.nodes)
    if idle > 0 and not spec.node_count:
        reasons.append(f"{describe.number(idle)} of {candidates} nodes {'have' if idle > 1 else 'has'} no part in it")
    return Plan(
        nodes=tuple(_shares(work, spec, found)),
        assignment=replicas.assignment,
        frames=replicas.frames,
        samples_per_s=speed.samples_per_s,
        best_single_samples_per_s=0.0,
        bitwise=len({p.fingerprint for p in roles.nodes}) == 1,
        reasons=tuple(reasons),
        replicas=tuple(Replica(tuple(range(r * size_of, (r + 1) * size_of))) for r in range(roles.workers)),
        shards=tuple(ShardHome((home, *roles.backups[shard : shard + 1])) for shard, home in enumerate(roles.homes)),
    )


def _shares(work: Workload, spec: JobSpec, found: Found) -> Iterator[NodeShare]:
    there, roles, replicas = found.there, found.roles, found.replicas
    room = limits(roles.nodes, spec.memory_bytes_max)
    total = there.sharding.space.size
    for n, profile in enumerate(roles.nodes):
        held, copied, computes = roles.shards_of(n), roles.backups_of(n), n < roles.computing
        elements = sum(there.sharding.shards[shard].size for shard in held)
        worker, segment = divmod(n, replicas.segments)
        memory = server_bytes(spec, there, held + copied, roles.workers, roles.copies)
        layers = ""
        if computes:
            memory += segment_bytes(work, spec, there, replicas.assignment, segment, replicas.frames)
            mine = [op for op, node in enumerate(replicas.assignment) if node == segment]
            layers = describe.layers(work, mine)
        yield NodeShare(
            node=profile.node,
            name=profile.name,
            layers=verdict.role(worker if computes else -1, held, copied, layers),
            parameters=there.own[segment].space.size if computes else elements,
            memory_bytes=memory,
            memory_bytes_max=room[n],
            compute_s=found.pace.passes_s[n] if computes else 0.0,
            sends=tuple(_sends(work, found, n)) if computes else (),
            copied_bytes=round(copied_bytes(there, roles, n)),
            why=verdict.why(found.pace.passes_s[n] if computes else None, elements / total),
        )


def _sends(work: Workload, found: Found, n: int) -> Iterator[tuple[str, int, int]]:
    """To other nodes of its worker, values per step and the gradients that come back; to homes of shards, pushed and fetched."""
    there, roles, replicas = found.there, found.roles, found.replicas
    worker, segment = divmod(n, replicas.segments)
    sync = there.how.kind == "sync"
    for (source, target), (forward, backward) in sorted(describe.crossings(work, replicas.assignment).items()):
        if source == segment:
            share = roles.workers if sync else 1
            name = roles.nodes[worker * replicas.segments + target].name
            yield name, forward // share, backward // share
    spoken = roles.spoken_by(n)
    for home in dict.fromkeys(roles.homes[shard] for shard in spoken):
        held = [shard for shard in spoken if roles.homes[shard] == home]
        pushed = sum(there.push_bytes[shard] for shard in held) / there.n_push
        fetched = sum(there.pull_bytes[shard] for shard in held) / there.n_fetch
        yield roles.nodes[home].name, round(pushed), round(fetched)


def _no_room(
    work: Workload,
    spec: JobSpec,
    candidates: Sequence[Profile],
    fast: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    links: Links,
) -> str:
    """The sentence for replicas and shards that fit nowhere, with what each node of the finest cut would need and has."""
    segments, most = sizes[-1]
    count = min(_counts(spec, most))
    roomy = [msgspec.structs.replace(p, memory_bytes_max=ROOMY) for p in candidates]
    free = msgspec.structs.replace(spec, memory_bytes_max=0)
    replicas = _cut(free, roomy, fast, count, segments, links)
    if replicas is None:
        return f"the model cannot be cut over {segments} nodes; take another number of --segments"
    room, data = limits(candidates, spec.memory_bytes_max), settings_of(spec)
    names = owned_parameters(spec.graph, replicas.assignment, segments)
    there = exchange(spec, *cut_segments(Space.of(spec.graph), names, data.shards or segments, data.cut))
    rows = []
    for number, n in enumerate(replicas.nodes):
        needed = segment_bytes(work, spec, there, replicas.assignment, number % segments, replicas.frames)
        rows.append(f"{candidates[n].name} would need {size(needed)} and has {size(room[n])}")
    copies = data.replicas or 1
    shard = max(server_bytes(spec, there, [number], count, copies) for number in range(len(there.push_bytes)))
    held = (
        f"{copies} replicas of a shard take up to {size(shard)} more each"
        if copies > 1
        else f"a shard takes up to {size(shard)} more"
    )
    return (
        f"{verdict.workers(count, segments)} {'do' if count > 1 else 'does'} not fit: {', '.join(rows)}, and {held} on "
        "one of them; use smaller micro-batches (--micro-batches), other --workers and --segments, "
        f"{'--replicas 1, ' * (copies > 1)}or add nodes"
    )
