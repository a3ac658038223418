"""The ways to run a job: on one node, with its model cut over nodes, with its data dealt out to them; which one is best.

`plan` makes the plan of the way that the job asks for. That of data parallelism is compared with the two others, in figures
(`Plan.predicted`) and in its first line; where it loses to one node, the settings of it are tried one after the other, those that
change the result least first, until one wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from p2pnn.errors import PlanError, UsageError
from p2pnn.job.plan import Plan, Predicted
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.plan import data, hybrid, planner, verdict
from p2pnn.plan.cost import Links, Workload
from p2pnn.plan.describe import rate
from p2pnn.plan.exchange import settings_of
from p2pnn.plan.profile import Profile
from p2pnn.plan.roles import fewer

GAIN_MIN: Final = 0.05
"""What a way must win by over a plainer one: less is noise of the model."""

PIECES: Final = 4
"""Micro-batches that a cut model is compared with where the job has fewer: as many as --parallel model has by itself."""

_ASYNC: Final[dict[str, Any]] = {"consistency": "async", "backup": 0}
_LOCAL: Final[dict[str, Any]] = {
    "consistency": "local:8", "backup": 0, "n_push": 1, "n_fetch": 1, "local_rate": 0.0, "warm_start": 0, "staleness_max": 0,
    "scale_by_staleness": False,
}  # fmt: skip
_HALVES: Final[dict[str, Any]] = {"push": "bf16", "pull": "bf16"}
_SELDOM: Final[dict[str, Any]] = {"n_push": 4, "n_fetch": 4}


def plan(
    spec: JobSpec, profiles: Sequence[Profile], links: Links, *, spread: bool = True, compared: bool = True
) -> Plan:
    """The job's plan, by its `parallel`. Arguments and errors as of `planner.plan`. compared: also with other ways and settings,
    which takes many times as long: that is for who may still choose."""
    if spec.parallel == "hybrid":
        return _hybrid(spec, profiles, links, compared)
    if spec.parallel != "data":
        return planner.plan(spec, profiles, links, spread=spread)
    work = Workload(spec)
    candidates, links = planner.candidates_of(spec, profiles), planner.even(links, profiles)
    dealt = data.choose(work, spec, candidates, links)
    made = data.record(work, spec, dealt, len(candidates))
    single, best = planner.best_single(work, candidates, links, spec.memory_bytes_max)
    predicted = [Predicted("single", (best,), single.samples_per_s)] if single else []
    cut = _cut(spec, profiles, links) if compared else None
    if cut is not None:
        predicted.append(Predicted("model", tuple(share.name for share in cut.nodes), cut.samples_per_s))
    predicted.append(Predicted("data", tuple(share.name for share in made.nodes), made.samples_per_s))
    both, instead = _both(work, spec, candidates, links) if compared else None, ""
    equal = dealt.there.how.kind != "async" and not settings_of(spec).workers  # of leased batches slow nodes take fewer
    counts = fewer(work, dealt.roles.nodes[: dealt.roles.workers]) if equal else []
    remedy, less = "" if compared else None, ""
    if compared and single and made.samples_per_s < single.samples_per_s:
        remedy = _remedy(work, spec, candidates, links, single.samples_per_s, counts)
    elif compared and counts:
        less = _leaner(work, spec, candidates, links, made.samples_per_s, counts)
    because = verdict.bound(dealt.pace.bound, dealt.roles)
    first = verdict.headline(predicted, because, remedy, best)
    if both is not None:
        predicted.append(Predicted("hybrid", tuple(p.name for p in both.roles.nodes), both.pace.samples_per_s))
        if both.pace.samples_per_s > made.samples_per_s * (1 + GAIN_MIN):
            flags = f"--parallel hybrid --workers {both.roles.workers} --segments {both.roles.segments}"
            instead = f"{flags} would reach {rate(both.pace.samples_per_s)} samples/s"
    return msgspec.structs.replace(
        made,
        best_single_samples_per_s=single.samples_per_s if single else 0.0,
        best_single_node=best,
        reasons=(first, *([less] if less else []), *([instead] if instead else []), *made.reasons),
        predicted=tuple(predicted),
    )


def _hybrid(spec: JobSpec, profiles: Sequence[Profile], links: Links, compared: bool) -> Plan:
    """With replicas that are cut over nodes, and compared with the ways that are plainer."""
    work = Workload(spec)
    candidates, links = planner.candidates_of(spec, profiles), planner.even(links, profiles)
    data.check(spec)
    found = hybrid.choose(work, spec, candidates, links)
    made = hybrid.record(work, spec, found, len(candidates))
    single, best = planner.best_single(work, candidates, links, spec.memory_bytes_max)
    predicted = [Predicted("single", (best,), single.samples_per_s)] if single else []
    cut = _cut(spec, profiles, links) if compared else None
    if cut is not None:
        predicted.append(Predicted("model", tuple(share.name for share in cut.nodes), cut.samples_per_s))
    dealt = _whole(work, spec, candidates, links) if compared else None
    if dealt is not None:
        predicted.append(Predicted("data", tuple(p.name for p in dealt.roles.nodes), dealt.pace.samples_per_s))
    predicted.append(Predicted("hybrid", tuple(share.name for share in made.nodes), made.samples_per_s))
    because = verdict.bound(found.pace.bound, found.roles)
    return msgspec.structs.replace(
        made,
        best_single_samples_per_s=single.samples_per_s if single else 0.0,
        best_single_node=best,
        reasons=(verdict.hybrid_headline(predicted, because), *made.reasons),
        predicted=tuple(predicted),
    )


def _whole(work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links) -> data.Dealt | None:
    """The same settings with workers that hold the whole model; None where no node has room for it."""
    given = msgspec.structs.replace(settings_of(spec), segments=1)
    try:
        return data.choose(work, msgspec.structs.replace(spec, parallel="data", data=given), candidates, links)
    except UsageError:  # a PlanError is one
        return None


def _both(work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links) -> hybrid.Found | None:
    """The same settings with replicas that are cut; None where there are not two of them, or they cannot be."""
    given = msgspec.structs.replace(settings_of(spec), segments=0)
    if given.backup or len(candidates) < 4:
        return None
    try:
        found = hybrid.choose(work, msgspec.structs.replace(spec, parallel="hybrid", data=given), candidates, links)
    except UsageError:  # a PlanError is one
        return None
    return found if found.roles.workers > 1 else None


def best(predicted: Sequence[Predicted]) -> Predicted:
    """The fastest way; of two that are as fast, the plainer one, which stands first. predicted: at least one."""
    found = predicted[0]
    for other in predicted[1:]:
        if other.samples_per_s > found.samples_per_s * (1 + GAIN_MIN):
            found = other
    return found


def _cut(spec: JobSpec, profiles: Sequence[Profile], links: Links) -> Plan | None:
    """The job's model cut over two nodes or more: over the best number of them, or if none is faster than one, over as many as
    there is room and work for. None where it cannot be cut."""
    pieces = spec.micro_batches
    if pieces < PIECES and spec.batch_size % PIECES == 0:
        pieces = PIECES
    whole = msgspec.structs.replace(spec, parallel="model", data=None, micro_batches=pieces)
    for spread in (False, True):
        try:
            found = planner.plan(whole, profiles, links, spread=spread)
        except PlanError:
            return None
        if len(found.nodes) > 1:
            return found
    return None


def _remedy(
    work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links, single: float, counts: Sequence[int]
) -> str:
    """`--push-every 4 --fetch-every 4 would win (16,900)`, or nothing. counts: numbers of workers to try first."""
    given = settings_of(spec)
    some = ((f"--workers {count}", msgspec.structs.replace(given, workers=count)) for count in counts)
    for flags, changed in (*some, *_changes(given)):
        found = _reached(work, spec, changed, candidates, links)
        if found > single * (1 + GAIN_MIN):
            return f"{flags} would win ({rate(found)})"
    return ""


def _leaner(
    work: Workload, spec: JobSpec, candidates: Sequence[Profile], links: Links, made: float, counts: Sequence[int]
) -> str:
    """`--workers 2 would reach 900: the others wait for the slowest`, where leaving slow nodes out is faster; or nothing."""
    given = settings_of(spec)
    found = [
        (_reached(work, spec, msgspec.structs.replace(given, workers=count), candidates, links), count)
        for count in counts
    ]
    reached, count = max(found)
    if reached <= made * (1 + GAIN_MIN):
        return ""
    return f"--workers {count} would reach {rate(reached)} samples/s: all workers wait for the slowest node"


def _reached(
    work: Workload, spec: JobSpec, changed: DataParallel, candidates: Sequence[Profile], links: Links
) -> float:
    """Predicted samples/s with other settings; 0 where they cannot be."""
    try:
        return data.choose(work, msgspec.structs.replace(spec, data=changed), candidates, links).pace.samples_per_s
    except UsageError:  # a PlanError is one
        return 0.0


def _changes(given: DataParallel) -> Iterator[tuple[str, DataParallel]]:
    """Other settings in words and as a record: those that change the result least first."""
    halves, seldom = "--push-compression bf16 --pull-compression bf16", "--push-every 4 --fetch-every 4"
    asynchronous = "" if given.consistency == "async" else "--consistency async "
    alone = msgspec.structs.replace(given, replicas=1)
    free = msgspec.structs.replace(alone, workers=0, shards=0)
    if alone != given:
        yield "--replicas 1", alone
    if free != alone:
        yield "--workers and --shards left away", free
    bases = [(given, "")]
    if alone != given:
        bases.append((alone, " --replicas 1"))
    if free != alone:
        bases.append((free, " with --workers and --shards left away"))
    for base, more in bases:
        for flags, changes in (
            (halves, _HALVES),
            ("--consistency async", _ASYNC),
            (f"{asynchronous}{seldom}", _ASYNC | _SELDOM),
            (f"{asynchronous}{seldom} {halves}", _ASYNC | _SELDOM | _HALVES),
            ("--consistency local:8", _LOCAL),
            (f"--consistency local:8 {halves}", _LOCAL | _HALVES),
        ):
            changed = msgspec.structs.replace(base, **changes)
            if changed != base:
                yield flags + more, changed
