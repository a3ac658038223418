"""`p2pnn service install|remove`: the node as a service of this machine, by systemd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from p2pnn.cli.http import Daemon
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
    force: Annotated[
        bool, typer.Option("--force", help="Also where nobody can take its work over, or the cluster cannot decide.")
    ] = False,
    dry_run: DryRunFlag = False,
    root: RootFlag = "/",
) -> None:
    """Have the node's work taken over, leave the cluster, then stop and remove the service; its state stays.

    Whatever breaks off in between, the same command goes on from there.
    """
    from p2pnn.cli import installation, terminal

    at = installation.Layout(name, Path(root).absolute())
    _check(at, dry_run)
    present = _survey(at)
    steps = installation.remove(at, present, purge)
    done, remains = _leave(at, force, dry_run) if present.unit else ("", "")
    if done:
        terminal.say(done)
    _carry_out(steps, dry_run, done)
    if remains:
        terminal.say(remains)
    if not dry_run and not purge:
        terminal.say(f"state stays in {at.state}, the configuration in {at.configuration}; --purge deletes both")


def _leave(at: Layout, force: bool, dry_run: bool) -> tuple[str, str]:
    """Have the node drain, leave its cluster and stop. What has been done and what remains, each a sentence, or empty.

    Where the daemon runs and may not go, or what becomes of it is unknown, raises P2pnnError: nothing has been removed then.
    """
    from p2pnn.cli import leaving
    from p2pnn.cli.http import Daemon
    from p2pnn.errors import NoDaemonError, P2pnnError

    daemon = Daemon(at.socket)
    try:
        node = daemon.get("node")
        others = len(daemon.get("cluster")["members"]) > 1
    except NoDaemonError:
        name = _name(at)
        return "", (
            f"node {name} did not run, so it could not leave by itself; where `p2pnn cluster show` on another machine lists it"
            f" still, type there: p2pnn cluster remove {name}"
        )
    except P2pnnError as error:
        if not force:
            raise type(error)(
                f"{error}; nothing was removed, and with --force it is removed without leaving its cluster"
            ) from error
        return "", leaving.stays_member(_name(at))
    finally:
        daemon.close()
    return _drain(daemon, at, node, others, force, dry_run)


def _drain(
    daemon: Daemon, at: Layout, node: Mapping[str, Any], others: bool, force: bool, dry_run: bool
) -> tuple[str, str]:
    """As `_leave`, of a node that runs. others: whether it has a cluster to leave."""
    from p2pnn.cli import installation, leaving, terminal
    from p2pnn.errors import NoDaemonError, P2pnnError

    name, secured = node["name"], node.get("secured") is not None
    step = installation.leave(at, force, for_good=others and secured)
    terminal.say(f"# {step.why}")
    terminal.say(step.line)
    left, plain = False, ""
    if others and not secured:
        plain = f"the other nodes of its plain mesh list {name} as away from now on; nothing waits for it"
    if dry_run:
        return "", plain
    try:
        left = leaving.drain(daemon, name, force=force, leave=others and secured)
    except NoDaemonError as error:
        raise NoDaemonError(f"{error}; nothing was removed, and the same command goes on") from error
    except P2pnnError as error:
        raise type(error)(f"node {name} works on, and nothing was removed: {error}") from error
    except KeyboardInterrupt:
        terminal.remark(f"node {name} goes on draining, and stops then; nothing was removed, the same command goes on")
        raise typer.Exit(130) from None
    if left:
        return f"node {name} has drained and left its cluster", ""
    return f"node {name} has drained", plain or (leaving.stays_member(name) if others else "")


def _name(at: Layout) -> str:
    """What the node is called, as far as its files tell while it does not run."""
    import os
    import tomllib

    if at.name:
        return at.name
    try:
        found = tomllib.loads(at.configuration.read_text("utf-8")).get("name")
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, str) and found else os.uname().nodename.split(".")[0]


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


def _carry_out(steps: Sequence[Step], dry_run: bool, done: str = "") -> None:
    """Print each step, and do it. Raises P2pnnError with the first that fails; those before it stay done, and so does `done`."""
    import os
    import subprocess

    from p2pnn.cli import terminal
    from p2pnn.cli.installation import UMASK
    from p2pnn.errors import P2pnnError

    done = f"{done}; " if done else ""
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
                f"{done}{step.command[0]} cannot be run: {error.strerror}; install it and run the same again"
            ) from error
        if status:
            raise P2pnnError(
                f"{done}`{step.line}` ended with status {status} and said why above; mend it and run the same again"
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
