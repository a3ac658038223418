"""`p2pnn cluster …`: what the cluster agrees on, as this node knows it, who is in no longer, and what to do when nothing can be
agreed on any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect
from p2pnn.errors import UsageError

app = typer.Typer(help="What the mesh agrees on.", no_args_is_help=True)


@app.command()
def show(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """Who coordinates, since which term, who votes, who is a member, who is away since when, and what waits for that."""
    from p2pnn.cli import render, terminal

    found = connect(socket).get("cluster")
    if json:
        terminal.print_json(found)
        return
    names = {member["node"]: member["name"] for member in found["members"]}
    voters = [member["name"] for member in found["members"] if member["voter"]]
    nobody = "nobody" if found.get("parked") else "nobody: an election is under way"
    rows = [
        ("cluster", found["cluster"] or "none yet: the coordinator has not admitted this node"),
        ("coordinator", names.get(found["coordinator"], found["coordinator"]) or nobody),
        ("term", str(found["term"])),
        ("charter", found["version"] or "none"),
        ("voters", f"{len(voters)}, a majority decides: {', '.join(voters)}" if voters else "unknown"),
    ]
    if found.get("parked"):
        rows.append(("parked", f"whatever needs a decision of the cluster waits: {found['parked']}"))
    rows += [("job", f"{one['job']} is {one['reason']}") for one in found.get("jobs", ())]
    for left, right in rows:
        terminal.say(render.label(left, right))
    if found["members"]:
        terminal.say("")
        for line in render.table(_table(found)):
            terminal.say(line)
    if found["alarm"]:
        lost = found.get("lost")
        count = f" ({lost['count']} of {lost['members']}, {lost['since']} ago)" if lost else ""
        terminal.remark(
            f"more than half of the members were lost at once{count}, so nothing is reassigned until some are back"
        )
    if found["disk"]:
        terminal.remark(f"this node cannot store the charter, so it does not vote: {found['disk']}")
    for other in found.get("foreign", ()):
        terminal.remark(other["reason"])


@app.command()
def recover(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
    socket: SocketFlag = None,
) -> None:
    """Begin a new cluster from this node's charter, when the majority of the voters is lost for good.

    Only this node is in the new cluster; the others must give the old one up and join.
    """
    from p2pnn.cli import terminal

    daemon = connect(socket)
    found = daemon.get("cluster")
    if not found["parked"]:
        raise UsageError(
            "the cluster has a coordinator, so there is nothing to recover; p2pnn cluster show tells which node it is"
        )
    secured = daemon.get("node").get("secured") is not None
    for line in _warning(found, secured):
        terminal.remark(line)
    if not yes:
        if not terminal.can_ask():
            raise UsageError("nobody is there to be asked; add --yes to recover without a question")
        answer = typer.prompt("Type the old cluster's id to go on", default="", show_default=False, err=True)
        if answer.strip() != found["cluster"]:
            raise UsageError("that is not its id, so nothing was done")
    new = daemon.post("cluster/recover", {"cluster": found["cluster"]})
    terminal.say(f"this node is the one member and voter of cluster {new['cluster']}, charter {new['version']}")


def _warning(found: Mapping[str, Any], secured: bool) -> list[str]:
    """What is lost by a recovery, and who must be told. secured: whether nodes join by tokens."""
    others = [member for member in found["members"] if member["state"] != "self"]
    alive = [member["name"] for member in others if member["state"] == "alive"]
    away = [member["name"] for member in others if member["state"] == "away"]
    version = found["version"] or "(none that it knows to be committed)"
    lines = [
        found["parked"],
        f"A new cluster would begin from this node's charter {version}, with this node alone. Lost is what the old voters decided"
        " and this node did not hear of; jobs that it knows of stay.",
        "Never may a majority of the old voters run again as they were:"
        f" cluster {found['cluster']} would go on beside the new one.",
    ]
    if alive or away:
        names = ", ".join([*alive, *away])
        how = (
            f"Each of these must join anew, by the line of `p2pnn token create` on this node with --force behind it: {names}."
            if secured
            else "Each of these must be stopped, have the file charter moved out of its state folder, and be started with --join:"
            f" {names}."
        )
        lines.append(how)
    return lines


@app.command()
def remove(
    member: Annotated[
        str, typer.Argument(metavar="NAME|ID", help="Its name, or its node id or the beginning of that.")
    ],
    socket: SocketFlag = None,
) -> None:
    """Remove a member: its links end at once, no other member lets it in, and the tokens made so far are revoked."""
    from p2pnn.cli import terminal

    connect(socket).post("members/remove", {"member": member})
    terminal.say(
        f"{member} is no member any more, and all tokens made so far are revoked; p2pnn token create makes new ones"
    )


def _table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("member", "node", "state", "role")]
    for member in found["members"]:
        leads = member["node"] == found["coordinator"]
        role = "coordinator" if leads else "voter" if member["voter"] else "learner"
        rows.append((member["name"], member["node"], _state(member), role))
    return rows


def _state(member: Mapping[str, Any]) -> str:
    """`away for 3 min: it was stopped`, or the state alone."""
    state = str(member["state"])
    if member.get("away"):
        found_dead = " (found dead)" if member.get("gone_s") is not None else ""
        state += f" for {member['away']}{found_dead}"
    return state + (f": {member['reason']}" if member.get("reason") else "")
