"""`p2pnn export` and `p2pnn paths`."""

from __future__ import annotations

from typing import Annotated

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name under the runs, as digits-1.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The file to write.")],
    format: Annotated[str, typer.Option("--format", metavar="safetensors", help="Its format.")] = "safetensors",
    json: JsonFlag = False,
) -> None:
    """Write a run's model to one file."""
    import os
    from pathlib import Path

    from p2pnn.cli import terminal
    from p2pnn.cli.runs import opened_run
    from p2pnn.config import unknown
    from p2pnn.errors import StorageError, UsageError

    if format != "safetensors":
        raise UsageError(unknown("no export format is called", format, ("safetensors",)))
    found = opened_run(run)
    target = Path(out).expanduser()
    if target.exists():
        raise UsageError(f"{target} exists already; name another file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        content = found.model.read_bytes()
        temporary.write_bytes(content)
        temporary.rename(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{target} could not be written: {error.strerror}") from error
    if json:
        terminal.print_json({"file": str(target), "bytes": len(content), "format": format})
    else:
        terminal.say(f"{target}: {len(found.graph.parameters)} parameters, {len(content):,} bytes")


def paths(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """Where p2pnn's files lie."""
    from p2pnn.cli import render, terminal
    from p2pnn.config import Places, client_socket, config_file

    places = Places.of()
    file = config_file(None)
    rows = {
        "socket": str(client_socket(socket).path),
        "config": str(file or places.config / "node.toml"),
        "state": str(places.state),
        "runs": str(places.runs),
        "profile": str(places.profile_cache),
    }
    if json:
        terminal.print_json({**rows, "config_exists": file is not None})
        return
    for name, path in rows.items():
        missing = "   (not there)" if name == "config" and file is None else ""
        terminal.say(render.label(name, path + missing))
