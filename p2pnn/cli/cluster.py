"""`p2pnn cluster show|remove`: what the cluster agrees on, as this node knows it, and who is in no longer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect

app = typer.Typer(help="What the mesh agrees on.", no_args_is_help=True)


@app.command()
def show(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """Who coordinates, since which term, who votes, and who is a member."""
    from p2pnn.cli import render, terminal

    found = connect(socket).get("cluster")
    if json:
        terminal.print_json(found)
        return
    names = {member["node"]: member["name"] for member in found["members"]}
    voters = [member["name"] for member in found["members"] if member["voter"]]
    rows = [
        ("cluster", found["cluster"] or "none yet: the coordinator has not admitted this node"),
        ("coordinator", names.get(found["coordinator"], found["coordinator"]) or "nobody: an election is under way"),
        ("term", str(found["term"])),
        ("charter", found["version"] or "none"),
        ("voters", f"{len(voters)}, a majority decides: {', '.join(voters)}" if voters else "unknown"),
    ]
    for left, right in rows:
        terminal.say(render.label(left, right))
    if found["members"]:
        terminal.say("")
        for line in render.table(_table(found)):
            terminal.say(line)
    if found["alarm"]:
        terminal.remark("more than half of the members were lost at once, so nothing is reassigned until some are back")
    if found["disk"]:
        terminal.remark(f"this node cannot store the charter, so it does not vote: {found['disk']}")


@app.command()
def remove(
    member: Annotated[
        str, typer.Argument(metavar="NAME|ID", help="Its name, or its node id or the beginning of that.")
    ],
    socket: SocketFlag = None,
) -> None:
    """Remove a member: its links end at once, and no other member lets it in any more."""
    from p2pnn.cli import terminal

    connect(socket).post("members/remove", {"member": member})
    terminal.say(f"{member} is no member any more; a new token lets that machine in again (p2pnn token create)")


def _table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("member", "node", "state", "role")]
    for member in found["members"]:
        leads = member["node"] == found["coordinator"]
        role = "coordinator" if leads else "voter" if member["voter"] else "learner"
        rows.append((member["name"], member["node"], member["state"], role))
    return rows
