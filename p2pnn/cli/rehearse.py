"""`p2pnn train --rehearse-failure`: a node of a local mesh is killed in the middle of the run, to see what that costs.

The job runs twice on the same local mesh: first undisturbed, then with a node killed (SIGKILL, as a crash or the system's
memory killer would) that holds a part of the model, halfway. What is shown: the losses of the epochs with the mark where it
died, how long nothing moved, how many steps were done twice, and whether both runs ended with the same bits. Nothing is kept
of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from p2pnn.cli import follow, render, submit, terminal
from p2pnn.cli.local import LocalMesh
from p2pnn.errors import JobFailedError, P2pnnError, UsageError

BAR_CELLS: Final = 40
"""Of the largest loss."""

NODES_MIN: Final = 2


@dataclass(slots=True)
class Rehearsal:
    """One run. curve: (epoch, loss) as they came first or, where a loss was made again, last. recovered: the mesh's own word."""

    bits: str = ""
    curve: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    victim: str = ""
    killed_at: int = 0
    during_epoch: int = 0
    stood_still_s: float = 0.0
    recovered: dict[str, Any] = field(default_factory=dict)


def count_for(local: int | None, socket: str | None, *, detach: bool, parallel: str = "model") -> int:
    """How many local nodes to start. Raises UsageError for a rehearsal that is none."""
    if parallel != "model":
        raise UsageError(
            f"--rehearse-failure shows how model parallelism goes on; leave --parallel {parallel} or --rehearse-failure away"
        )
    if socket is not None or detach:
        raise UsageError(
            "--rehearse-failure kills a node, so it takes a mesh of its own: leave --socket and --detach away"
        )
    count = 3 if local is None else local
    if count < NODES_MIN:
        raise UsageError(
            f"--rehearse-failure with --local {count}: nobody would be left; take --local {NODES_MIN} or more"
        )
    return count


def rehearse(mesh: LocalMesh, prepared: submit.Prepared, *, json: bool = False) -> None:
    """Run the job twice and show what the failure did. Raises JobFailedError where a run fails, or the bits differ though they
    must not."""
    terminal.remark("first undisturbed, then with a node killed halfway; nothing is kept of either")
    calm = _run(mesh, prepared, lambda event: None)
    terminal.remark(f"undisturbed: {calm.seconds:.1f} s, bits {calm.bits}")
    struck = _strike(mesh, prepared)
    same = calm.bits == struck.bits
    if json:
        terminal.print_json(_record(calm, struck))
    else:
        for line in curve(calm, struck):
            terminal.say(line)
        for line in _verdict(prepared, calm, struck):
            terminal.say(line)
    if not same and prepared.spec.in_flight < 2:
        raise JobFailedError(
            f"the bits differ: {calm.bits} undisturbed, {struck.bits} with the failure; please report this"
        )


def curve(calm: Rehearsal, struck: Rehearsal) -> list[str]:
    """The losses of the run's epochs as bars, beside those of the undisturbed run, with a mark where the node died."""
    rows = [("epoch", "loss", "undisturbed", "")]
    largest = max((loss for loss in struck.curve.values() if loss == loss), default=0.0) or 1.0
    for epoch, loss in sorted(struck.curve.items()):
        bar = "█" * max(1, round(BAR_CELLS * min(1.0, loss / largest))) if loss == loss else ""
        other = calm.curve.get(epoch)
        rows.append((str(epoch), render.loss(loss), "" if other is None else render.loss(other), bar))
    lines = render.table(rows, right=(0, 1, 2))
    mark = f"      ╳ node {struck.victim} was killed at step {struck.killed_at:,}"
    at = 1 + sum(epoch < struck.during_epoch for epoch in struck.curve)
    return [*lines[:at], mark, *lines[at:]]


def _strike(mesh: LocalMesh, prepared: submit.Prepared) -> Rehearsal:
    names: list[str] = []
    half = prepared.spec.steps // 2
    found = Rehearsal()
    killed: list[float] = []

    def watch(event: dict[str, Any]) -> None:
        if event["kind"] == "plan" and not killed:
            names[:] = [share["name"] for share in event["plan"]["nodes"]]
        elif event["kind"] in ("progress", "epoch") and not killed and event["step"] >= half:
            found.victim = _victim(names)
            found.killed_at = event["step"]
            found.during_epoch = event["step"] // max(1, prepared.spec.steps_per_epoch) + 1
            killed.append(time.time())
            mesh.kill(found.victim)
            terminal.remark(f"node {found.victim} is killed at step {found.killed_at:,} of {prepared.spec.steps:,}")
        elif event["kind"] == "recovered":
            found.recovered = event
            terminal.remark(event["text"])
        elif event["kind"] in ("progress", "epoch") and found.recovered and not found.stood_still_s:
            found.stood_still_s = event["time"] - killed[0]

    done = _run(mesh, prepared, watch)
    found.bits, found.curve, found.seconds = done.bits, done.curve, done.seconds
    if not found.recovered:
        raise P2pnnError("the run ended before its node was missed; rehearse with more --epochs")
    return found


def _victim(names: Sequence[str]) -> str:
    """The last node of the plan that is not the one that this command speaks to."""
    others = [name for name in names if name != "a"]
    if not others:
        raise UsageError("the whole model lies on node a, which this command speaks to; add --nodes 2 to spread it")
    return others[-1]


def _run(mesh: LocalMesh, prepared: submit.Prepared, watch: Callable[[dict[str, Any]], None]) -> Rehearsal:
    began = time.monotonic()
    job = submit.send(mesh.daemon, prepared, terminal.remark)
    lines = follow.Lines()

    def show(event: dict[str, Any]) -> None:
        watch(event)
        if event["kind"] in ("progress", "preparing"):
            lines.show(event)

    try:
        outcome = follow.follow(mesh.daemon, job, show, may_detach=False, fallen=mesh.fallen)
    finally:
        lines.clear()
    outcome.raise_if_failed()
    found = Rehearsal(seconds=time.monotonic() - began)
    found.bits = str((outcome.result or {}).get("bits", ""))
    for entry in outcome.epochs:
        found.curve[int(entry["epoch"])] = float(entry.get("validation_loss", entry.get("loss", float("nan"))))
    return found


def _verdict(prepared: submit.Prepared, calm: Rehearsal, struck: Rehearsal) -> list[str]:
    told = struck.recovered
    stood = f"nothing moved for {struck.stood_still_s:.1f} s; {told['redone']:,} steps were done twice"
    lines = [render.label("Failure", f"node {struck.victim}, SIGKILL at step {struck.killed_at:,}; {stood}")]
    if calm.bits == struck.bits:
        return [*lines, render.label("Bits", f"{struck.bits}, as undisturbed")]
    text = f"{struck.bits}, but {calm.bits} undisturbed"
    if prepared.spec.in_flight >= 2:
        text += (
            f": with {prepared.spec.schedule} they depend on the cut, and it was cut anew over the nodes that were left"
        )
    return [*lines, render.label("Bits", text)]


def _record(calm: Rehearsal, struck: Rehearsal) -> dict[str, Any]:
    return {
        "victim": struck.victim,
        "killed_at": struck.killed_at,
        "step": struck.recovered["step"],
        "redone": struck.recovered["redone"],
        "stood_still_s": round(struck.stood_still_s, 3),
        "bits": struck.bits,
        "undisturbed_bits": calm.bits,
        "losses": struck.curve,
        "undisturbed_losses": calm.curve,
    }
