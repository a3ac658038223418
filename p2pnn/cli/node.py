"""`p2pnn node start|stop|status` and `p2pnn peers`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect

app = typer.Typer(help="This machine's daemon.", no_args_is_help=True)


@app.command()
def start(
    name: Annotated[str | None, typer.Option(help="What the node is called.  [default: the host's name]")] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Its state folder; one daemon per folder.  [default: where `p2pnn paths` says]"
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where peers reach it; port 0 for a free one.  [default: 0.0.0.0:7700, all addresses]",
        ),
    ] = None,
    join: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="A peer to join; any one is enough; may be repeated.")
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A join token, for --join; P2PNN_TOKEN may hold it instead; - reads it here."
        ),
    ] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="An address for the line by which others join, in place of this machine's own; +HOST adds one.",
        ),
    ] = None,
    plain: Annotated[
        bool | None,
        typer.Option("--plain", help="Without keys: for a mesh of nodes on this machine only, at 127.0.0.1."),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The socket for commands.  [default: p2pnn.sock in a --state-dir that is given]"
        ),
    ] = None,
    socket_group: Annotated[
        str | None,
        typer.Option(metavar="GROUP", help="A group whose people may open that socket too.  [default: only this user]"),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="The mesh's name; peers of another are refused.  [default: p2pnn]")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="How soon a silent node counts as dead: loopback (8 s), lan (30 s) or wan.  [default: by --listen]"
        ),
    ] = None,
    quota: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of stored data, such as 20 GB.  [default: no limit]")
    ] = None,
    profile_cache: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Where the machine's measured speed is kept.  [default: in the state folder]"
        ),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A node.toml; see docs/operating.md.  [default: where `p2pnn paths` says]"),
    ] = None,
    lifeline: Annotated[int | None, typer.Option(metavar="FD", hidden=True)] = None,
    ready_fd: Annotated[int | None, typer.Option(metavar="FD", hidden=True)] = None,
) -> None:
    """Run the daemon in the foreground, until it is stopped."""
    from p2pnn.cli.terminal import remark
    from p2pnn.config import BAD_CONFIGURATION, can_configure, is_configured, node_config, same_setting
    from p2pnn.errors import NotAllowedError, UsageError
    from p2pnn.values import typed_token

    flags = {
        "name": name,
        "state_dir": state_dir,
        "listen": listen,
        "join": join,
        "token": typed_token(token_file),
        "token_file": None if token_file == "-" else token_file,
        "advertise": advertise,
        "plain": plain,
        "socket": socket,
        "socket_group": socket_group,
        "cluster": cluster,
        "preset": preset,
        "quota": quota,
        "profile_cache": profile_cache,
        "log_level": log_level,
    }
    try:
        resolved = node_config(flags, config=config, lifeline_fd=lifeline, ready_fd=ready_fd)
    except (UsageError, NotAllowedError) as error:
        remark(f"p2pnn: {error}")
        by_flag = can_configure(config)
        raise typer.Exit(error.exit_status if by_flag else BAD_CONFIGURATION) from error
    from p2pnn.api.serve import run_daemon

    try:
        ended = run_daemon(resolved)
    except (UsageError, NotAllowedError) as error:
        by_flag = any(flags[key] is not None for key in same_setting(error.setting or "name"))
        if not error.setting or by_flag or not is_configured(error.setting, config):
            raise
        remark(f"p2pnn: {error}")
        raise typer.Exit(BAD_CONFIGURATION) from error
    raise typer.Exit(ended)


@app.command()
def stop(socket: SocketFlag = None) -> None:
    """Stop the daemon. Jobs that it coordinates end with it and can be resumed."""
    from p2pnn.cli.terminal import say

    daemon = connect(socket)
    name = daemon.get("node")["name"]
    daemon.post("node/stop")
    say(f"node {name} is stopping")


@app.command()
def drain(
    force: Annotated[
        bool, typer.Option("--force", help="Also where nobody can take something over; such jobs wait or are lost.")
    ] = False,
    leave: Annotated[
        bool,
        typer.Option(
            "--leave", help="Leave the cluster for good, too: the others list it no more; revokes all tokens."
        ),
    ] = False,
    socket: SocketFlag = None,
) -> None:
    """Have other nodes take over this node's work, without losing a step, then stop it. Ctrl-C stops the waiting alone."""
    from p2pnn.cli import leaving, terminal

    daemon = connect(socket)
    name = daemon.get("node")["name"]
    try:
        if leaving.drain(daemon, name, force=force, leave=leave) or not leave:
            terminal.say(f"node {name} has drained{' and left its cluster' * leave} and is stopping")
        else:
            terminal.say(f"node {name} has drained and is stopping; {leaving.stays_member(name)}")
    except KeyboardInterrupt:
        again = "p2pnn node drain" + " --leave" * leave
        terminal.remark(f"node {name} goes on draining, and stops then; `{again}` shows it again")
        raise typer.Exit(130) from None


@app.command()
def status(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """What the daemon is, where it listens, and what it does."""
    from p2pnn.cli import render, terminal

    daemon = connect(socket)
    node = daemon.get("node")
    if json:
        terminal.print_json(node)
        return
    quota = f" of {render.size(node['quota_bytes'])}" if node.get("quota_bytes") else ""
    profile = node.get("profile")
    machine = (
        f"{profile['gflops']:.0f} GFLOP/s, {render.size(profile['memory_bytes'])} free"
        if profile
        else "not measured yet"
    )
    waiting = f", {len(node['queue'])} waiting" if node.get("queue") else ""
    rows = [
        ("node", f"{node['name']}   {node['node']}"),
        ("version", f"{node['version']}   pid {node['pid']}, up {render.clock(node['uptime_s'])}"),
        ("address", str(node["address"])),
        ("state", str(node["state_dir"])),
        ("memory", render.size(node["rss_bytes"])),
        ("data", f"{render.size(node['blobs_bytes'])}{quota}"),
        ("machine", machine),
        ("job", f"{node.get('job') or 'none'}{waiting}"),
        ("identity", _identity(node.get("secured"))),
        ("peers", _peers(daemon.get("peers")["peers"])),
    ]
    for left, right in rows:
        terminal.say(render.label(left, right))
    if node.get("notice"):
        terminal.remark(node["notice"])


def _identity(found: dict[str, Any] | None) -> str:
    """`cluster 5f0c21aa, certificate until 2027-11-30, holds the cluster's key`."""
    import datetime

    if found is None:
        return "plain: no keys, this machine only"
    if found["removed"]:
        return f"no member any more: {found['removed']}"
    ends = datetime.datetime.fromtimestamp(found["certificate_ends_s"], datetime.UTC).date()
    holds = ", holds the cluster's key" if found["holds_authority"] else ""
    return f"cluster {found['cluster'][:8]}, certificate until {ends}{holds}"


def _peers(found: list[dict[str, Any]]) -> str:
    """`2 alive; b suspect since 3 s, by c: it answers no probe; 127.0.0.1:7701 unreachable: nobody listens there`."""
    from p2pnn.cli import render

    alive = sum(peer["state"] == "alive" for peer in found)
    away = [
        f"{peer.get('name') or peer['address']} {render.peer_state(peer)}"
        for peer in found
        if peer["state"] not in ("self", "alive", "left")
    ]
    return "; ".join([f"{alive} alive", *away])


def peers(socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """The nodes of the mesh as this one sees them. One that is not alive is shown with who says so, and why."""
    from p2pnn.cli import render, terminal

    found = connect(socket).get("peers")
    if json:
        terminal.print_json(found)
        return
    for line in render.peers_table(found["peers"]):
        terminal.say(line)
    if found.get("parked"):
        terminal.remark(found["parked"])
