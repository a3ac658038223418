"""`p2pnn data ls|rm`: the datasets that this node's chunk store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect

app = typer.Typer(help="The data that the daemon holds.", no_args_is_help=True)


@app.command("ls")
def list_(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """Datasets, their sizes, and the jobs that use them."""
    from p2pnn.cli import render, terminal

    found = connect(socket).get("datasets")
    if json:
        terminal.print_json(found)
    elif not found["datasets"]:
        terminal.remark("this node holds no data yet; p2pnn train brings it here")
    else:
        for line in render.datasets_table(found["datasets"]):
            terminal.say(line)


@app.command("rm")
def remove(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its name, or the beginning of its id.")],
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Remove a dataset from this node. It is refused while a job needs it."""
    from p2pnn.cli import render, terminal
    from p2pnn.cli.http import segment
    from p2pnn.config import unknown
    from p2pnn.errors import UsageError

    daemon = connect(socket)
    datasets = daemon.get("datasets")["datasets"]
    matching = [d for d in datasets if d["name"] == dataset or d["id"].startswith(dataset)]
    if not matching:
        raise UsageError(unknown("there is no dataset", dataset, {d["name"] for d in datasets}))
    if len(matching) > 1:
        ids = ", ".join(d["id"][:12] for d in matching)
        raise UsageError(f"{dataset!r} names several datasets; write one of their ids: {ids}")
    freed = daemon.delete(f"datasets/{segment(matching[0]['id'])}")["bytes"]
    if json:
        terminal.print_json({"dataset": matching[0]["id"], "bytes": freed})
    else:
        terminal.say(f"{matching[0]['name']} removed, {render.size(freed)} freed")
