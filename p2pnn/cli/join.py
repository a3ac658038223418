"""`p2pnn join` and `p2pnn token create|list|revoke`: how a machine comes into a cluster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect

if TYPE_CHECKING:
    from p2pnn.cli.http import Daemon

app = typer.Typer(help="What lets a machine join.", no_args_is_help=True)


def join(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOKEN|-] ADDRESS...", help="As `p2pnn token create` prints it; - reads the token here."
        ),
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The token, instead of typing it; P2PNN_TOKEN may hold it too.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Though this node's cluster has other members: for one that is lost for good."),
    ] = False,
    socket: SocketFlag = None,
) -> None:
    """Have this machine's node join a cluster. It must be alone in its own, and have no job.

    Each address is tried in turn. The token's secret is sent only to a member of the cluster that it is of.
    """
    from p2pnn.cli import terminal

    token, addresses = _token_and_addresses(words or [], token_file)
    daemon = connect(socket)
    _require(daemon, addresses)
    found = daemon.post("join", {"token": token, "addresses": addresses, "force": force})
    terminal.say(f"joined cluster {found['cluster'][:8]} by {found['address']}; `p2pnn peers` shows who is there")


@app.command()
def create(
    valid: Annotated[
        str, typer.Option(metavar="TIME", help="How long it lets in: 90m, 24h, 7d; a minute to 30 days.")
    ] = "24h",
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Make a token, and print the line to type on each machine that is to join."""
    from p2pnn.cli import terminal

    found = connect(socket).post("tokens", {"valid_s": _seconds(valid)})
    if json:
        terminal.print_json(found)
        return
    terminal.say(found["line"])
    terminal.remark(
        f"for any number of machines, until {_when(found['expires_s'])}; p2pnn token revoke {found['id']} ends it"
    )


@app.command("list")
def list_(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """The tokens that have not expired. Their secrets are kept nowhere."""
    from p2pnn.cli import render, terminal

    found = connect(socket).get("tokens")
    if json:
        terminal.print_json(found)
        return
    if not found["tokens"]:
        terminal.remark("no token lets anybody in; `p2pnn token create` makes one")
        return
    rows: list[tuple[str, ...]] = [("token", "made by", "at", "until", "state")]
    for token in found["tokens"]:
        state = "revoked" if token["revoked"] else "good"
        rows.append((token["id"], token["by"], _when(token["created_s"]), _when(token["expires_s"]), state))
    for line in render.table(rows):
        terminal.say(line)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="As `p2pnn token list` shows it, or the whole token.")],
    socket: SocketFlag = None,
) -> None:
    """Let nobody in by this token any more. Who has joined with it stays."""
    from p2pnn.cli import terminal

    connect(socket).post("tokens/revoke", {"id": token})
    terminal.say(f"token {token.split('.')[2] if token.count('.') == 3 else token} lets nobody in any more")


def _token_and_addresses(words: list[str], token_file: str | None) -> tuple[str, list[str]]:
    """Raises UsageError where there is no token, or two, or no address."""
    from pathlib import Path

    from p2pnn.errors import UsageError
    from p2pnn.values import join_token, typed_token

    typed = bool(words) and (words[0] == "-" or words[0].startswith("p2pnn1"))
    if typed and token_file:
        raise UsageError("a token is given twice, as a word and by --token-file: give one of them")
    said = (typed_token(words[0]) or words[0]) if typed else typed_token(token_file) or ""
    path = Path(token_file) if token_file and token_file != "-" else None
    token = join_token(said or ("" if path else os.environ.get("P2PNN_TOKEN", "")), path)
    if not token:
        raise UsageError(
            "no token: type the line that `p2pnn token create` prints on a member, or use --token-file or P2PNN_TOKEN"
        )
    addresses = words[1:] if typed else words
    if not addresses:
        raise UsageError("no address of a member: `p2pnn token create` prints the line with all of them")
    return token, addresses


def _require(daemon: Daemon, addresses: list[str]) -> None:
    """Raises NoDaemonError, with what to do, where no node runs here yet."""
    from p2pnn.cli.http import nobody_on
    from p2pnn.errors import NoDaemonError

    if not daemon.answers():
        joins = " ".join(f"--join {address}" for address in addresses)
        raise NoDaemonError(
            f"{nobody_on(daemon.path)}. A node that starts and joins at once: p2pnn node start --token-file FILE {joins}"
        )


def _seconds(text: str) -> float:
    """`90m` and the like. Raises UsageError."""
    from p2pnn.errors import UsageError

    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdigit() or len(number) > 9:
        raise UsageError(f"--valid {text!r} is not a time; write 90m, 24h or 7d")
    return float(int(number) * units[unit])


def _when(seconds: Any) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
