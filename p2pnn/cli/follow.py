"""Following a job: its events until it ends, and what Ctrl-C means meanwhile.

The daemon numbers a job's events, so a stream that breaks is taken up after the last number seen. While the daemon lives
nothing is lost; where it has died, the job has lost its coordinator, and the sentence says how to go on.

Ctrl-C asks whether to detach (the job runs on) or to cancel, until it is answered; a second one cancels. Without a
terminal, and on a local mesh, which ends with the command, it cancels at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from p2pnn.cli import render, terminal
from p2pnn.cli.http import Daemon, segment
from p2pnn.errors import JobFailedError, NoDaemonError, P2pnnError

TERMINAL_STATES: Final = ("done", "failed", "cancelled", "paused")
PASSING: Final = ("progress", "preparing", "tokens")
"""Kinds of events that nobody wants to see any more once the job is being cancelled."""

EPOCH_STAYS_S: Final = 10.0
REDIAL_DEADLINE_S: Final = 5.0
"""How long a daemon that broke off may take to answer again; a restarted one is ready in 1 s."""


@dataclass(slots=True)
class Outcome:
    """What a job came to. state is one of TERMINAL_STATES, or `detached`; `interrupted` that a person ended it."""

    job: str
    state: str = ""
    reason: str = ""
    interrupted: bool = False
    plan: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def raise_if_failed(self) -> None:
        """Raise KeyboardInterrupt where a person cancelled, JobFailedError where the job did not get to its end."""
        if self.interrupted and self.state == "cancelled":
            raise KeyboardInterrupt
        if self.state == "failed":
            raise JobFailedError(f"the job {self.job} failed: {self.reason or 'no reason was given'}")
        if self.state == "cancelled":
            raise JobFailedError(f"the job {self.job} was cancelled" + (f": {self.reason}" if self.reason else ""))


def follow(
    daemon: Daemon,
    job: str,
    show: Callable[[dict[str, Any]], None],
    *,
    after: int = 0,
    may_detach: bool = True,
    fallen: Callable[[], str] = lambda: "",
) -> Outcome:
    """Show every event of a job numbered above `after` until it ends. fallen: a sentence if the daemon is known to be dead.

    Raises JobFailedError where the daemon dies under it.
    """
    outcome, number = Outcome(job), after
    while True:
        try:
            for event in events(daemon, job, number, fallen):
                number = event["number"]
                _note(outcome, event)
                if not (outcome.interrupted and event["kind"] in PASSING):
                    show(event)
            return outcome
        except KeyboardInterrupt:
            if outcome.interrupted:
                raise
            if may_detach and terminal.can_ask() and _wants_to_detach():
                outcome.state = "detached"
                return outcome
            outcome.interrupted = True
            if sys.stderr.isatty():
                sys.stderr.write(os.linesep)  # the terminal has written ^C behind whatever stood there
            terminal.remark(f"cancelling {job} …")
            daemon.post(f"jobs/{segment(job)}/cancel")


def events(
    daemon: Daemon, job: str, after: int = 0, fallen: Callable[[], str] = lambda: "", idle_s: float | None = None
) -> Iterator[dict[str, Any]]:
    """The job's events with a number above `after`, until it has ended, or, with idle_s, until none comes for so long.

    A job that was resumed has ended several times: only an end that is still its state is one. Broken streams are taken up
    again.
    """
    state = ""
    while True:
        fresh = False
        try:
            for event in daemon.stream(f"jobs/{segment(job)}/events?after={after}", idle_s):
                after, fresh = event["number"], True
                if event["kind"] == "state":
                    state = event["state"]
                yield event
            if idle_s is not None:
                return
            summary = daemon.get(f"jobs/{segment(job)}")
        except NoDaemonError:
            if state in TERMINAL_STATES:
                return
            _await_daemon(daemon, job, fallen)
            continue
        if summary["state"] in TERMINAL_STATES:
            if summary["state"] == state:
                return
            if not fresh:  # the stream ended there before our number
                reason = summary.get("reason") or ""
                yield {"number": after, "kind": "state", "state": summary["state"], "reason": reason}
                return
        elif not fresh:
            time.sleep(0.1)


class Lines:
    """Shows events on standard error: one line redrawn in a terminal, one line per epoch elsewhere.

    The redrawn line never stays behind: what stays are epochs' own figures, of the last one at the end, and on the way of
    each that comes EPOCH_STAYS_S after the one before, so that quick ones do not fill the screen.
    """

    def __init__(self, *, demonstration: bool = False, redraw: bool | None = None) -> None:
        self._demonstration = demonstration
        self._redraw = terminal.can_redraw() if redraw is None else redraw
        self._drawn = False
        self._epoch = ""
        self._stayed_at: float | None = None
        self._preparing: dict[str, tuple[int, int]] = {}

    def show(self, event: dict[str, Any]) -> None:
        if self._stayed_at is None:
            self._stayed_at = event.get("time")
        match event["kind"]:
            case "progress":
                self._draw(render.progress(event, _columns()))
            case "preparing":
                self._preparing[event["node"]] = event.get("fetched_bytes") or 0, event.get("total_bytes") or 0
                self._draw(render.preparing(self._preparing, _columns()))
            case "epoch" if self._redraw:
                self._epoch = render.epoch(event)
                if event.get("time", 0.0) - (self._stayed_at or 0.0) >= EPOCH_STAYS_S:
                    self._stayed_at = event["time"]
                    self.clear()
            case "epoch":
                terminal.remark(render.epoch(event))
            case "plan":
                headline = render.plan_headline(event["plan"], self._demonstration)
                width = _columns() if self._redraw else None
                for line in [*render.label_lines("Plan", headline, width), *render.plan_table(event["plan"])]:
                    self._line(line)
            case "queued" | "warning" | "recovered":
                self._line(render.event(event))
            case "checkpoint":
                if event.get("error"):
                    self._line(render.event(event))
            case "state":
                self._preparing.clear()
                if event["state"] in TERMINAL_STATES:
                    self.clear()

    def clear(self) -> None:
        """End the redrawn line: wipe it, and leave the last epoch's figures in its place."""
        self._wipe()
        if self._epoch:
            terminal.remark(self._epoch)
            self._epoch = ""

    def _line(self, text: str) -> None:
        self._wipe()
        terminal.remark(text)

    def _draw(self, text: str) -> None:
        if self._redraw:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
            self._drawn = True

    def _wipe(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._drawn = False


def _columns() -> int:
    """Cells for the redrawn line, such that the ^C of a Ctrl-C has its place behind it."""
    return shutil.get_terminal_size().columns - len("^C")


def _note(outcome: Outcome, event: dict[str, Any]) -> None:
    match event["kind"]:
        case "state":
            outcome.state, outcome.reason = event["state"], event.get("reason") or event.get("text") or ""
        case "plan":
            outcome.plan = event["plan"]
        case "epoch":
            outcome.epochs = [e for e in outcome.epochs if e["epoch"] != event["epoch"]]  # done again after a loss
            outcome.epochs.append(event)
        case "progress":
            outcome.last = event
        case "evaluation":
            outcome.evaluations.append(event)
        case "result":
            outcome.result = event


def _await_daemon(daemon: Daemon, job: str, fallen: Callable[[], str]) -> None:
    deadline = time.monotonic() + REDIAL_DEADLINE_S
    while True:
        if words := fallen():
            raise JobFailedError(words)
        try:
            if daemon.answers():
                return
        except P2pnnError:
            pass
        if time.monotonic() > deadline:
            raise JobFailedError(
                f"the daemon on {daemon.path} ended while {job} ran; start one again and `p2pnn jobs resume {job}`,"
                " on this or any other node of the mesh"
            )
        time.sleep(0.1)


def _wants_to_detach() -> bool:
    """Ask until it is answered. Only `c` or a second Ctrl-C cancels: where nobody can answer any more, the job runs on."""
    sys.stderr.write(os.linesep)
    while True:
        sys.stderr.write("detach (the job runs on) or cancel it? [d/c] ")
        sys.stderr.flush()
        try:
            typed = sys.stdin.readline()
        except KeyboardInterrupt:
            return False
        answer = typed.strip().lower()
        if answer in ("c", "cancel"):
            return False
        if answer in ("d", "detach") or not typed:
            return True
