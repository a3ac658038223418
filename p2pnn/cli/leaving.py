"""A node that goes: it is drained, and leaves its cluster where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pnn.cli.http import Daemon


def drain(daemon: Daemon, name: str, *, force: bool, leave: bool) -> bool:
    """Have the node drain, show what it waits for, and return whether it has left its cluster. KeyboardInterrupt ends the waiting
    alone.

    Raises as the daemon does where it may not go (force: see `p2pnn node drain`), NoDaemonError where it ends before that.
    """
    from p2pnn.cli import terminal
    from p2pnn.cli.http import of_exit
    from p2pnn.errors import NoDaemonError

    last: dict[str, Any] = {}
    for last in daemon.stream("node/drain", body={"force": force} | ({"leave": True} if leave else {})):
        if "error" in last:
            raise of_exit(last["exit"], last["error"])
        if "waits_for" in last:
            terminal.remark(f"waiting for {last['waits_for']} …")
    if "drained" not in last:
        raise NoDaemonError(f"node {name} ended before it had drained; its log says why")
    return last.get("left") is True


def stays_member(name: str) -> str:
    """What remains to be done where a node has stopped without leaving, as a clause."""
    return (
        "its cluster still counts it as a member that is away; to end that, type on another member:"
        f" p2pnn cluster remove {name}"
    )
