"""`--parallel auto`: ask the mesh what each way would reach, and take the fastest, in words.

It is decided before the job is submitted, and the job file that is saved says what came of it: a run does not change its way when
a node is lost, and its job file repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from p2pnn.cli import render
from p2pnn.cli.http import Daemon
from p2pnn.cli.jobfile import with_way
from p2pnn.cli.request import Request
from p2pnn.cli.submit import Prepared
from p2pnn.errors import P2pnnError, UsageError
from p2pnn.job.plan import Predicted
from p2pnn.job.spec import JobSpec
from p2pnn.plan import best

LABEL: Final = "Auto"


@dataclass(frozen=True, slots=True)
class Settled:
    """The job with its way decided; line: that and why, empty where a person decided it. predicted: what was compared."""

    prepared: Prepared
    line: str = ""
    predicted: tuple[Predicted, ...] = ()


def settle(daemon: Daemon, prepared: Prepared, request: Request) -> Settled:
    """Decide the way of a job that leaves it open. Raises what the daemon's planner does for one that cannot be at all."""
    if request.mesh.parallel != "auto":
        return Settled(prepared)
    spec, mesh = prepared.spec, request.mesh
    tied = (
        "pins say" if mesh.pins else "a schedule says" if mesh.schedule != "sync" else "a cut says" if mesh.cut else ""
    )
    if tied:
        return _model(prepared, f"model parallelism, because {tied} where layers go")
    try:
        found = daemon.post("plan", msgspec.msgpack.encode(spec))
    except UsageError as error:
        return _cut(daemon, prepared, error)
    predicted = msgspec.convert(found["plan"].get("predicted") or (), tuple[Predicted, ...])
    if not predicted:
        raise P2pnnError(
            "the daemon compares no ways to run a job; it is of an older version: say --parallel model or data"
        )
    chosen = best(predicted)
    line = _line(chosen, predicted)
    if chosen.way == "data":
        return Settled(_changed(prepared, spec, "data", None), line, predicted)
    if chosen.way == "hybrid":
        return Settled(_changed(prepared, _hybrid(spec), "hybrid", None), line, predicted)
    nodes = list(chosen.nodes) if isinstance(mesh.nodes, list) else len(chosen.nodes)
    settled = _model(prepared, line, nodes)
    return replace(settled, predicted=predicted)


def _cut(daemon: Daemon, prepared: Prepared, error: UsageError) -> Settled:
    """No worker can hold the whole model, or something else is wrong with data parallelism: of the ways that cut the model the
    fastest one."""
    because = f"because data parallelism cannot be: {error}"
    hybrid = _hybrid(prepared.spec)
    try:
        found = daemon.post("plan", msgspec.msgpack.encode(hybrid))
    except UsageError:
        return _model(prepared, f"model parallelism, {because}")
    predicted = msgspec.convert(found["plan"].get("predicted") or (), tuple[Predicted, ...])
    chosen = best(predicted) if predicted else None
    if chosen is None or chosen.way != "hybrid":
        return replace(_model(prepared, f"model parallelism, {because}"), predicted=predicted)
    return Settled(_changed(prepared, hybrid, "hybrid", None), _line(chosen, predicted), predicted)


def _hybrid(spec: JobSpec) -> JobSpec:
    """The same job with workers that are cut over as many nodes as is fastest."""
    assert spec.data is not None
    data = msgspec.structs.replace(spec.data, segments=0)
    return msgspec.structs.replace(spec, parallel="hybrid", data=data)


def _model(prepared: Prepared, line: str, nodes: int | list[str] | None = None) -> Settled:
    spec = msgspec.structs.replace(prepared.spec, parallel="model", data=None)
    if isinstance(nodes, list):
        spec = msgspec.structs.replace(spec, nodes=tuple(nodes))
    elif nodes is not None:
        spec = msgspec.structs.replace(spec, node_count=nodes)
    return Settled(_changed(prepared, spec, "model", nodes), line)


def _changed(prepared: Prepared, spec: JobSpec, parallel: str, nodes: int | list[str] | None) -> Prepared:
    text = with_way(spec.request, parallel, nodes)
    return replace(prepared, spec=msgspec.structs.replace(spec, request=text))


def _line(chosen: Predicted, predicted: Sequence[Predicted]) -> str:
    """`data parallelism: 1,150 samples/s predicted, against 410 on one node and 980 with the model cut over 3`."""
    others = [_reached(other) for other in predicted if other != chosen]
    name = {
        "single": "one node",
        "model": "model parallelism",
        "data": "data parallelism",
        "hybrid": "hybrid parallelism",
    }[chosen.way]
    against = f", against {' and '.join(others)}" if others else ""
    return f"{name}: {render.count(round(chosen.samples_per_s))} samples/s predicted{against}"


def _reached(found: Predicted) -> str:
    rate, count = render.count(round(found.samples_per_s)), len(found.nodes)
    where = {
        "single": "on one node",
        "model": f"with the model cut over {count}",
        "data": f"with data parallelism over {count}",
        "hybrid": f"with hybrid parallelism over {count}",
    }
    return f"{rate} {where[found.way]}"
