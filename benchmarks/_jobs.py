"""Jobs of ours on a mesh of this machine, from submission to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from p2pnn.cli import follow, submit
from p2pnn.cli.http import Daemon


class Mesh(Protocol):
    """A local one, or one whose links are shaped."""

    @property
    def daemon(self) -> Daemon: ...

    def fallen(self) -> str:
        """A sentence about the first daemon that ended by itself, or empty."""


def run(mesh: Mesh, prepared: submit.Prepared, show: Callable[[dict[str, Any]], None]) -> follow.Outcome:
    """Submit a job and wait until it is done; show gets its events. Raises JobFailedError where it does not get there.

    Ctrl-C cancels the job; KeyboardInterrupt follows also where the job was done before that reached it.
    """
    job = submit.send(mesh.daemon, prepared)
    outcome = follow.follow(mesh.daemon, job, show, may_detach=False, fallen=mesh.fallen)
    if outcome.interrupted:
        raise KeyboardInterrupt
    outcome.raise_if_failed()
    return outcome
