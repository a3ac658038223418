"""From a request to a plan: choose nodes, honour pins, cut, improve, and say why, or refuse with the figures.

Nothing is started before a plan exists, so whatever cannot work ends here, with one sentence: too few nodes, an unknown
one, contradicting pins, a batch that does not divide, a model that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low

from p2pnn.errors import PlanError
from p2pnn.job.plan import NodeShare, Plan
from p2pnn.job.segment import segments
from p2pnn.job.spec import JobSpec
from p2pnn.plan import describe, given, pins
from p2pnn.plan.cost import Links, Workload, limits, memory_bytes
from p2pnn.plan.partition import best_cuts, stages_max
from p2pnn.plan.predict import Prediction, predict
from p2pnn.plan.profile import Link, Profile
from p2pnn.plan.search import Choice, choose
from p2pnn.types import NodeId

PLAYED = 3
"""So many orders of nodes, the best by the DP's formula, are compared by playing them."""


def plan(spec: JobSpec, profiles: Sequence[Profile], links: Links, *, spread: bool = True) -> Plan:
    """Cut the job's graph over the nodes.

    profiles: one per node that could take part. links: directed; missing ones count as 1 Gbit/s. spread: use as many
    nodes as were asked for (all with room where spec.node_count is 0), even where fewer would be faster; without it,
    the fastest number of nodes. The plan's `reasons[0]` is the line to print first.

    Raises PlanError with one sentence: too many or unknown nodes, pins, a batch that micro-batches do not divide, no room.
    """
    work = Workload(spec)
    candidates = candidates_of(spec, profiles)
    links = even(links, profiles)
    known = {name: n for n, p in enumerate(profiles) for name in (p.name, p.node)}
    numbers = {name: n for n, p in enumerate(candidates) for name in (p.name, p.node)}
    pinned = pins.resolve(spec.graph, spec.pins, numbers, known)
    asked = _asked(spec, candidates, pinned)
    single, best = best_single(work, candidates, links, spec.memory_bytes_max)
    if spec.cut:
        asked = given.nodes_of(spec.cut)
        frames = frames_for(work, asked)
        choice = given.choose(work, spec.cut, candidates, links, frames, pinned, spec.memory_bytes_max)
    else:
        choice = _choose(work, spec, candidates, links, pinned, asked, spread)
    return _record(work, spec, choice, links, single, best, asked or len(candidates), bool(pinned))


def even(links: Links, profiles: Sequence[Profile]) -> Links:
    """The links with those inside one machine made equal, to their median: what differs there is noise, and noise must
    not decide which of two equal nodes comes first."""
    machine = {p.node: p.machine for p in profiles}
    inside: dict[str, list[tuple[NodeId, NodeId]]] = {}
    for pair in sorted(links):
        if machine.get(pair[0]) and machine.get(pair[0]) == machine.get(pair[1]):
            inside.setdefault(machine[pair[0]], []).append(pair)
    even = dict(links)
    for pairs in inside.values():
        speed = median_low([links[pair].bytes_per_s for pair in pairs])
        latency = median_low([links[pair].latency_s for pair in pairs])
        even.update(dict.fromkeys(pairs, Link(speed, latency)))
    return even


def headline(made: Plan) -> str:
    """The plan's first line: predicted samples/s of the best single node and of this cut."""
    return made.reasons[0] if made.reasons else ""


def candidates_of(spec: JobSpec, profiles: Sequence[Profile]) -> list[Profile]:
    """The nodes that the job may use, by name: the same list on whichever node it is planned."""
    there = ", ".join(sorted(p.name for p in profiles)) or "none"
    ordered = sorted(profiles, key=lambda p: (p.name, p.node))
    for name in spec.nodes:
        if not any(name in (p.name, p.node) for p in ordered):
            raise PlanError(f"the job names the node {name}, which is not in this mesh; there are {there}")
    chosen = [p for p in ordered if not spec.nodes or p.name in spec.nodes or p.node in spec.nodes]
    if spec.node_count > len(chosen):
        listed = ", ".join(p.name for p in chosen) or "none"
        raise PlanError(f"{spec.node_count} nodes are asked for, but there are {len(chosen)}: {listed}")
    if not chosen:
        raise PlanError("there is no node to run on; start one with p2pnn node start")
    return chosen


def _asked(spec: JobSpec, candidates: Sequence[Profile], pinned: Mapping[int, int]) -> int:
    """How many nodes must take part; 0 for as many as there is room and work for."""
    asked = spec.node_count or (len(candidates) if spec.nodes else 0)
    wanted = {candidates[n].name for n in pinned.values()}
    if 0 < asked < len(wanted):
        raise PlanError(f"the pins name {len(wanted)} nodes ({', '.join(sorted(wanted))}), but {asked} are asked for")
    return asked


def best_single(work: Workload, candidates: Sequence[Profile], links: Links, cap: int) -> tuple[Prediction | None, str]:
    whole = [0] * work.count
    needed = memory_bytes(work, whole, 0, 1)
    fitting = [p for p in candidates if needed <= limits([p], cap)[0]]
    played = [(predict(work, whole, [p], links, 1), p.name) for p in fitting]
    return min(played, key=lambda row: (row[0].step_s, row[1]), default=(None, ""))


def _counts(work: Workload, candidates: Sequence[Profile], pinned: Mapping[int, int], asked: int) -> Iterator[int]:
    """Numbers of nodes to try, the preferred one first."""
    least = max(1, len(set(pinned.values())))
    most = min(asked or len(candidates), len(candidates))
    if not pinned:
        most = min(most, stages_max(work))
    yield from range(max(most, least), least - 1, -1)


def _choose(
    work: Workload,
    spec: JobSpec,
    candidates: Sequence[Profile],
    links: Links,
    pinned: Mapping[int, int],
    asked: int,
    spread: bool,
) -> Choice:
    """As many nodes as possible; of those the fastest cut, with as many frames as fit."""
    cap = spec.memory_bytes_max
    found: list[Choice] = []
    for count in _counts(work, candidates, pinned, asked):
        for frames in frames_for(work, count):
            cuts = best_cuts(work, candidates, links, count, frames, pinned, cap, PLAYED)
            if cuts:
                found.append(deepen(work, choose(work, cuts, candidates, links, frames, pinned, cap), links, cap))
                break
        if found and spread:
            break
    if not found:
        raise PlanError(_no_room(work, candidates, links, pinned, asked, cap))
    return max(found, key=lambda c: (c.prediction.samples_per_s, -len(c.profiles)))


def frames_for(work: Workload, count: int) -> Sequence[int]:
    """Numbers of frames to try, the preferred one first: one per mini-batch in flight, or as many micro-batches as keep
    `count` nodes busy. One node has one micro-batch at a time."""
    if count == 1:
        return [1]
    return [work.in_flight] if work.in_flight else range(min(work.micro_batches, count + 1), 0, -1)


def deepen(work: Workload, choice: Choice, links: Links, cap: int) -> Choice:
    """Pins and branches can make chains deeper than the nodes are many: more frames where the memory allows it."""
    if work.in_flight:
        return choice
    depth = max(s.depth for s in segments(work.graph, choice.assignment)) + 1
    room = limits(choice.profiles, cap)
    for frames in range(min(work.micro_batches, depth + 1), choice.frames, -1):
        if len(room) > 1 and all(memory_bytes(work, choice.assignment, n, frames) <= r for n, r in enumerate(room)):
            prediction = predict(work, choice.assignment, choice.profiles, links, frames)
            return Choice(choice.profiles, choice.assignment, frames, prediction)
    return choice


def _no_room(
    work: Workload, candidates: Sequence[Profile], links: Links, pinned: Mapping[int, int], asked: int, cap: int
) -> str:
    """The sentence for a job that fits nowhere, with what each node would need and has."""
    roomy = [_with_memory(p) for p in candidates]
    alone = memory_bytes(work, [0] * work.count, 0, 1)
    for count in _counts(work, candidates, pinned, asked):
        frames = frames_for(work, count)[-1]
        cuts = best_cuts(work, roomy, links, count, frames, pinned, 0)
        if cuts:
            nodes = [candidates[n] for n in cuts[0].nodes]
            needs = [describe.size(memory_bytes(work, cuts[0].assignment, n, frames)) for n in range(len(nodes))]
            rows = [
                f"{p.name} would need {need} and has {describe.size(r)}"
                for p, need, r in zip(nodes, needs, limits(nodes, cap), strict=True)
            ]
            break
    else:
        return (
            "the model cannot be cut as the pins say: each node that takes part needs a layer with parameters; leave a pin "
            "away, or pin other layers"
        )
    parts = "; ".join([f"on one node it needs {describe.size(alone)}", f"cut over {len(rows)}, {', '.join(rows)}"])
    if len(candidates) == 1:
        parts = rows[0]
    smaller = (
        "smaller batches or fewer of them in flight" if work.in_flight else "smaller micro-batches (--micro-batches)"
    )
    return f"the model does not fit the nodes: {parts}; use {smaller} or add nodes"


def _idle(work: Workload, asked: int, used: int) -> str:
    if used >= stages_max(work):
        return f"{used} of {asked} nodes take part: the model can be cut into {used} parts that have parameters"
    return f"{used} of {asked} nodes take part: cut over more, no part would fit the smallest of them"


def _with_memory(profile: Profile) -> Profile:
    return Profile(
        **{name: getattr(profile, name) for name in profile.__struct_fields__} | {"memory_bytes_max": 1 << 62}
    )


def _record(
    work: Workload,
    spec: JobSpec,
    choice: Choice,
    links: Links,
    single: Prediction | None,
    best: str,
    asked: int,
    pinned: bool,
) -> Plan:
    """Number the nodes by their first op, drop those without ops, and put it all into words."""
    order = list(dict.fromkeys(choice.assignment))
    nodes = [choice.profiles[n] for n in order]
    assignment = tuple(order.index(n) for n in choice.assignment)
    bitwise = len({p.fingerprint for p in nodes}) == 1
    late = work.delays(assignment) if work.in_flight else ()
    rows: list[NodeShare] = describe.shares(work, assignment, nodes, choice.frames, spec.memory_bytes_max)
    reasons = [describe.headline(work, nodes, links, choice.prediction, single, best)]
    reasons += describe.cuts(work, assignment, nodes, pinned)
    if late:
        reasons.append(describe.in_flight(spec.schedule, work.in_flight, [p.name for p in nodes], late))
    if asked > len(nodes):
        reasons.append(_idle(work, asked, len(nodes)))
    if not bitwise:
        reasons.append(
            "the nodes differ in library versions or processors: the result is equal to 1e-5, not bitwise, to a run on one node"
        )
    return Plan(
        nodes=tuple(rows),
        assignment=assignment,
        frames=choice.frames,
        samples_per_s=choice.prediction.samples_per_s,
        best_single_samples_per_s=single.samples_per_s if single else 0.0,
        best_single_node=best,
        bitwise=bitwise,
        reasons=tuple(reasons),
        delays=late,
    )
