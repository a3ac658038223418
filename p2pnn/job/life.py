"""The life of a job: every legal change of state, in one table.

    queued ──► preparing ──► running ──► finishing ──► done
       ▲            │         │   ▲          │
       │            │         ▼   │          │
       └── paused ◄─┼──── pausing ┘          │
       ▲            ▼                        ▼
       └─ failed, cancelled ◄─── from every state that is not an end

`resume` leads back to queued from paused, failed and cancelled; `done` is final. A job that loses a node on its way is
`recovering`, until it is prepared again over other nodes, and `parked` while those that are left do not suffice. So is a queued
one that a new coordinator finds and cannot begin.
"""

from __future__ import annotations

from typing import Final

from p2pnn.errors import UsageError

TABLE: Final[dict[str, dict[str, str]]] = {
    "queued": {
        "granted": "preparing",
        "lose": "recovering",
        "fail": "failed",
        "cancel": "cancelled",
        "pause": "paused",
    },
    "preparing": {"prepared": "running", "lose": "recovering", "fail": "failed", "cancel": "cancelled"},
    "running": {
        "pause": "pausing",
        "complete": "finishing",
        "lose": "recovering",
        "fail": "failed",
        "cancel": "cancelled",
    },
    "pausing": {
        "pause": "pausing",
        "saved": "paused",
        "unsaved": "running",
        "complete": "finishing",
        "lose": "recovering",
        "fail": "failed",
        "cancel": "cancelled",
    },
    "finishing": {"gathered": "done", "lose": "recovering", "fail": "failed", "cancel": "cancelled"},
    "recovering": {
        "granted": "preparing",
        "park": "parked",
        "pause": "recovering",
        "lose": "recovering",
        "saved": "paused",
        "fail": "failed",
        "cancel": "cancelled",
    },
    "parked": {
        "unpark": "recovering",
        "lose": "recovering",
        "saved": "paused",
        "pause": "parked",
        "fail": "failed",
        "cancel": "cancelled",
    },
    "paused": {"resume": "queued", "cancel": "cancelled"},
    "failed": {"resume": "queued"},
    "cancelled": {"resume": "queued"},
    "done": {},
}

VERBS: Final = ("cancel", "pause", "resume")
"""The events that a person asks for; the others happen."""

PLACING: Final = frozenset({"queued", "recovering"})
"""States in which a plan's nodes are taken."""

RUNNING: Final = frozenset({"running", "pausing", "finishing"})
"""States in which the nodes of a plan carry out the script."""

ENDED: Final = frozenset({"done", "failed", "cancelled", "paused"})
"""States in which a job holds no node."""


def is_after(state: str, verb: str, *, moves: bool = False) -> bool:
    """Whether a job in this state is where `verb` leads, as far as whoever asks for it again is concerned. moves: a job that is
    pausing does so by itself, to go on elsewhere."""
    if (state, verb) == ("pausing", "pause"):
        return not moves
    if verb == "resume":
        return state != "pausing" and state not in ENDED
    return state in {"cancel": ("cancelled",), "pause": ("pausing", "paused")}[verb]


def after(state: str, event: str) -> str:
    """The state that `event` leads to; UsageError where the table has no such change."""
    try:
        return TABLE[state][event]
    except KeyError:
        legal = ", ".join(verb for verb in VERBS if verb in TABLE[state]) or "nothing more"
        raise UsageError(f"a job that is {state} cannot {event}; possible is: {legal}") from None
