"""A plan in words: the row per node, why each cut is where it is, and the first line, which tells the truth when it is slower."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnn.job.plan import NodeShare
from p2pnn.plan.cost import Links, Workload, limits, link, memory_bytes, seconds
from p2pnn.plan.partition import boundaries, crossing
from p2pnn.plan.pins import layer
from p2pnn.plan.predict import Prediction
from p2pnn.plan.profile import Profile

SMALL_STEP_S = 0.05
"""Where one node takes less than this per step, waiting and sending weigh more than computing."""


def size(nbytes: float) -> str:
    """Bytes for a person: `60 KiB`, `3.1 MiB`."""
    for unit, limit in (("bytes", 1 << 10), ("KiB", 1 << 20), ("MiB", 1 << 30), ("GiB", 1 << 40)):
        if nbytes < limit:
            value = nbytes / (limit >> 10)
            return f"{value:,.0f} {unit}" if value >= 10 or unit == "bytes" else f"{value:.1f} {unit}"
    return f"{nbytes / (1 << 40):,.1f} TiB"


def rate(samples_per_s: float) -> str:
    """`38,500`: three significant digits, and more only below ten."""
    if samples_per_s < 10:
        return f"{samples_per_s:.2f}"
    digits = max(0, len(str(int(samples_per_s))) - 3)
    return f"{round(samples_per_s, -digits):,.0f}"


def shares(
    work: Workload, assignment: Sequence[int], profiles: Sequence[Profile], frames: int, cap: int
) -> list[NodeShare]:
    """One row per node, in plan order."""
    room = limits(profiles, cap)
    sends, late = crossings(work, assignment), work.delays(assignment)
    found = []
    for n, profile in enumerate(profiles):
        mine = [i for i in range(work.count) if assignment[i] == n]
        spent = seconds(work, profile)
        once = float(spent.updating(late[n])[mine].sum())
        compute = float((spent.forward + spent.backward)[mine].sum()) * work.micro_batches + once
        found.append(
            NodeShare(
                node=profile.node,
                name=profile.name,
                layers=layers(work, mine),
                parameters=int(work.parameters[mine].sum()),
                memory_bytes=memory_bytes(work, assignment, n, frames),
                memory_bytes_max=room[n],
                compute_s=compute,
                sends=tuple((profiles[t].name, *amount) for (s, t), amount in sorted(sends.items()) if s == n),
                why=_why(work, assignment, n, profiles, compute),
            )
        )
    return found


def crossings(work: Workload, assignment: Sequence[int]) -> dict[tuple[int, int], tuple[int, int]]:
    """(source, target) → bytes per step of values, and of the gradients that come back for them."""
    totals: dict[tuple[int, int], tuple[int, int]] = {}
    for border in work.borders:
        if border.producer < 0:
            continue
        source = assignment[border.producer]
        for target in {assignment[c] for c in border.readers} - {source}:
            back = sum(assignment[c] == target for c in border.gradients)
            forward, backward = totals.get((source, target), (0, 0))
            nbytes = border.bytes * work.micro_batches
            totals[source, target] = (forward + nbytes, backward + nbytes * back)
    return totals


def layers(work: Workload, ops: Sequence[int]) -> str:
    """`conv1 … pool2`: first and last of each run of consecutive ops, the smaller runs left out beyond four."""
    runs: list[list[int]] = []
    for i in ops:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    texts = []
    for run in runs:
        names = list(dict.fromkeys(layer(work.graph, i) for i in run))
        texts.append(names[0] if len(names) == 1 else f"{names[0]}{' … ' if len(names) > 2 else ', '}{names[-1]}")
    texts = list(dict.fromkeys(texts))
    return ", ".join(texts) if len(texts) <= 4 else ", ".join([*texts[:3], f"and {len(texts) - 3} more"])


def _why(work: Workload, assignment: Sequence[int], n: int, profiles: Sequence[Profile], compute_s: float) -> str:
    total = sum(float(work.forward_flops[i] + work.backward_flops[i]) for i in range(work.count)) or 1.0
    mine = sum(float(work.forward_flops[i] + work.backward_flops[i]) for i in range(work.count) if assignment[i] == n)
    return f"{100 * mine / total:.0f} % of the arithmetic, {compute_s * 1e3:.3g} ms of computing per step"


def cuts(work: Workload, assignment: Sequence[int], profiles: Sequence[Profile], pinned: bool) -> list[str]:
    """One sentence per pair of nodes that something crosses between, forward."""
    found = []
    edges = boundaries(work, {})
    forward, backward = crossing(work, range(work.count + 1))
    contiguous = list(assignment) == sorted(assignment)
    for (source, target), (there, back) in sorted(crossings(work, assignment).items()):
        crossed = [
            b.value
            for b in work.borders
            if b.producer >= 0 and assignment[b.producer] == source and any(assignment[c] == target for c in b.readers)
        ]
        some = ", ".join(crossed[:3]) + (f" and {len(crossed) - 3} more" if len(crossed) > 3 else "")
        gradient = f", {size(back)} of gradients back" if back else ""
        text = f"{profiles[source].name} → {profiles[target].name}: {some}, {size(there)} per step{gradient}"
        if contiguous and target == source + 1 and not pinned:
            here = next(i for i in range(work.count) if assignment[i] == target)
            text += "; " + _why_here(work, here, edges, [float(x) for x in forward + backward])
        elif pinned:
            text += "; the pins ask for it"
        found.append(text)
    return found


def _why_here(work: Workload, here: int, edges: Sequence[int], crossed: Sequence[float]) -> str:
    """Compare this boundary with those within a tenth of the arithmetic around it."""
    done = (work.forward_flops + work.backward_flops).cumsum()
    total = float(done[-1]) or 1.0
    near = [b for b in edges if abs(float(done[b - 1] - done[here - 1])) <= 0.1 * total]
    least = min(near, key=lambda b: (crossed[b], abs(b - here)), default=here)
    if crossed[here] <= crossed[least]:
        return "the cheapest boundary near the balance" if len(near) > 1 else "the only boundary near the balance"
    instead = size(crossed[least] * work.micro_batches)
    where = layer(work.graph, least)
    return f"a cut before {where} would send only {instead} there and back, but leave the nodes less in balance"


def in_flight(schedule: str, count: int, names: Sequence[str], late: Sequence[int]) -> str:
    """What `async:K` means for these nodes: who works with parameters of how many updates ago."""
    if not any(late):
        return f"{schedule}: no node runs behind, so the result is, bit for bit, that of sync with one micro-batch"
    rows = [
        f"node {name} runs {number(delay)} update{'s' * (delay > 1)} behind"
        for name, delay in zip(names, late, strict=True)
        if delay
    ]
    listed = ", ".join(rows)
    return (
        f"{schedule}: {number(count)} mini-batches in flight; {listed}. The result repeats bit for bit, but differs from that of "
        "sync, and with another cut"
    )


def number(count: int) -> str:
    """A small number as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)


def headline(
    work: Workload,
    profiles: Sequence[Profile],
    links: Links,
    prediction: Prediction,
    single: Prediction | None,
    best: str,
) -> str:
    """The first line: the best single node against this cut, and why the cut is slower where it is."""
    if len(profiles) == 1:
        return f"one node ({profiles[0].name}) {rate(prediction.samples_per_s)} samples/s"
    if single is None:
        return f"no single node has room for it; this cut {rate(prediction.samples_per_s)} samples/s"
    start = f"one node {rate(single.samples_per_s)} samples/s, this cut {rate(prediction.samples_per_s)}"
    if prediction.samples_per_s >= single.samples_per_s:
        return f"{start}: {prediction.samples_per_s / single.samples_per_s:.1f} times as fast as {best} alone"
    return f"{start}: slower, because {_slower(work, profiles, links, single)}; cut anyway"


def _slower(work: Workload, profiles: Sequence[Profile], links: Links, single: Prediction) -> str:
    step_s = single.step_s if work.training else single.step_s / work.micro_batches
    if step_s < SMALL_STEP_S:
        return "the network is small"
    for p in profiles:
        together = sum(q.machine == p.machine for q in profiles) if p.machine else 1
        if together > p.cores:
            return f"{together} nodes share the {p.cores} core{'s' * (p.cores > 1)} of one machine"
    pairs = [link(links, a.node, b.node) for a in profiles for b in profiles if a.node != b.node]
    crossed = min(crossing(work, boundaries(work, {}))[0], default=0.0) * work.micro_batches
    slowest = min(pairs, key=lambda x: x.bytes_per_s)
    if crossed / slowest.bytes_per_s > 0.2 * step_s:
        return f"the links are slow ({size(slowest.bytes_per_s)}/s)"
    return "the stages wait for each other and the nodes are unequal"
