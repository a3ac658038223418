"""`p2pnn service install|remove`: the node as a service of this machine, by systemd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from p2pnn.cli.installation import Layout, Present, Step

app = typer.Typer(help="The node as a service of this machine (systemd).", no_args_is_help=True)

NameFlag = Annotated[
    str, typer.Option(metavar="NAME", help="One of several nodes of this machine.  [default: the machine's one node]")
]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Print the commands and carry out none.")]
RootFlag = Annotated[str, typer.Option(metavar="DIR", hidden=True)]


@app.command()
def install(name: NameFlag = "", dry_run: DryRunFlag = False, root: RootFlag = "/") -> None:
    """Install and start the service, or bring it up to date."""
    import os

    from p2pnn.cli import installation, origin, terminal

    at = installation.Layout(name, Path(root).absolute())
    _check(at, dry_run)
    caller = os.environ.get("SUDO_USER") or None
    caller = None if caller == "root" else caller
    present = _survey(at)
    _carry_out(installation.install(at, origin.find(), present, caller), dry_run)
    if not dry_run:
        for line in _installed(at, present, caller):
            terminal.say(line)


@app.command()
def remove(
    name: NameFlag = "",
    purge: Annotated[bool, typer.Option("--purge", help="Delete its state and configuration, too.")] = False,
    dry_run: DryRunFlag = False,
    root: RootFlag = "/",
) -> None:
    """Stop and remove the service; its state stays, and so does its place in the cluster."""
    from p2pnn.cli import installation, terminal

    at = installation.Layout(name, Path(root).absolute())
    _check(at, dry_run)
    present = _survey(at)
    steps, still = installation.remove(at, present, purge), _membership(at)
    _carry_out(steps, dry_run)
    if present.unit and still:
        terminal.say(still)
    if not dry_run and not purge:
        terminal.say(f"state stays in {at.state}, the configuration in {at.configuration}; --purge deletes both")


def _membership(at: Layout) -> str:
    """What remains to be done in the cluster by somebody else, as this node's daemon tells while it runs; empty for nothing.

    A service that is stopped stays a member, as it should over a restart, and only a member that stays can remove it.
    """
    import os

    from p2pnn.cli.http import Daemon
    from p2pnn.errors import P2pnnError

    name, others = at.name or os.uname().nodename.split(".")[0], "if it has others, "
    daemon = Daemon(at.socket)
    try:
        name = daemon.get("node")["name"]
        if len(daemon.get("cluster")["members"]) < 2:
            return ""
        others = ""
    except (P2pnnError, OSError):
        pass  # it does not run
    finally:
        daemon.close()
    return (
        f"its cluster still counts it as a member that is away; to end that, {others}type on another member:"
        f" p2pnn cluster remove {name}"
    )


def _check(at: Layout, dry_run: bool) -> None:
    """Raises NotAllowedError without root, UsageError without systemd."""
    import os
    import shlex
    import shutil
    import sys

    from p2pnn.errors import NotAllowedError, UsageError

    if dry_run:
        return
    if at.root == Path("/") and os.geteuid() != 0:
        again = shlex.join(["sudo", os.path.abspath(sys.argv[0]), *sys.argv[1:]])
        raise NotAllowedError(f"services are root's to change; run it as root: {again}")
    if shutil.which("systemctl") is None:
        raise UsageError(
            "there is no systemd on this machine (no systemctl), so a service cannot be had; see p2pnn node start"
        )


def _survey(at: Layout) -> Present:
    """What of services is on the machine."""
    from p2pnn.cli.installation import Present

    wanted = at.units / "multi-user.target.wants"
    instances = {path.name for path in wanted.glob("p2pnn@*.service")} if at.units.is_dir() else set()
    plain = {"p2pnn.service"} if (at.units / "p2pnn.service").exists() else set()
    configured = at.configuration.exists()
    return Present(
        units=frozenset(instances | plain),
        unit=at.unit_file.exists()
        and (at.unit in instances | plain or configured),  # the file is that of all instances
        environment=at.environment.exists(),
        configuration=configured,
        state=at.state.exists() or at.private_state.exists(),
        ports=_ports(at),
    )


def _ports(at: Layout) -> frozenset[int]:
    """The ports that configurations of nodes of this machine name; a file that cannot be read names none."""
    import tomllib

    from p2pnn.errors import UsageError
    from p2pnn.types import Address

    ports = set()
    for path in (at.configurations / "node.toml", *at.configurations.glob("*/node.toml")):
        try:
            ports.add(Address.parse(str(tomllib.loads(path.read_text("utf-8"))["listen"])).port)
        except (OSError, ValueError, KeyError, UsageError):
            continue
    return frozenset(ports)


def _carry_out(steps: Sequence[Step], dry_run: bool) -> None:
    """Print each step, and do it. Raises P2pnnError with the first that fails; those before it stay done."""
    import os
    import subprocess

    from p2pnn.cli import terminal
    from p2pnn.cli.installation import UMASK
    from p2pnn.errors import P2pnnError

    terminal.say(f"umask {UMASK:04o}")
    if not dry_run:
        os.umask(UMASK)
    for step in steps:
        terminal.say(f"# {step.why}")
        terminal.say(step.line)
        if dry_run:
            continue
        try:
            status = subprocess.run(step.command, stdin=subprocess.DEVNULL).returncode
        except OSError as error:
            raise P2pnnError(
                f"{step.command[0]} cannot be run: {error.strerror}; install it and run the same again"
            ) from error
        if status:
            raise P2pnnError(
                f"`{step.line}` ended with status {status} and said why above; mend it and run the same again"
            )


def _installed(at: Layout, present: Present, caller: str | None) -> list[str]:
    """What a person does next."""
    from p2pnn.cli.installation import GROUP

    peers = "as configured" if present.configuration else "none yet: p2pnn join, with the line that a member prints, or"
    peers += "" if present.configuration else " p2pnn token create, for others to join this one"
    who = f"root and the group {GROUP}"
    who += (
        f"; {caller} from the next login on"
        if caller
        else f" (to add a person: usermod --append --groups {GROUP} NAME)"
    )
    speak = "p2pnn node status" if not at.name else f"P2PNN_SOCKET={at.socket} p2pnn node status"
    return [
        f"{at.unit} runs, also after a restart of this machine",
        f"configuration  {at.configuration}",
        f"peers          {peers}",
        f"state          {at.state}",
        f"may use it     {who}",
        f"next           {speak} · systemctl status {at.unit} · journalctl --unit {at.unit}",
    ]
