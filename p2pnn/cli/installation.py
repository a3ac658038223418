"""What `p2pnn service` does to a machine, as commands that a person could type. Decided here, carried out by `cli.service`.

A machine has one node, p2pnn.service, or several, p2pnn@NAME.service. They share one environment, /opt/p2pnn/venv, built from
where this program comes from, and the group p2pnn, whose people may use them. Each has its own configuration, state and socket.
What a person made or may miss (a configuration, state) is never overwritten, and deleted only when that is asked for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnn.errors import UsageError

GROUP: Final = "p2pnn"
PORT: Final = 7700
PORT_STEP: Final = 10
"""Between the nodes of one machine, because each has more than one port."""

UMASK: Final = 0o022
"""The service's user must be able to read what root installs, whatever root's own umask is."""

NAME_CHARS_MAX: Final = 25
"""Of an instance: its user is called p2pnn-NAME, and a user's name has 31 characters and no dot (systemd's USER_NAMES)."""

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARS_MAX - 1}}}")


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and what it is for."""

    why: str
    command: tuple[str, ...]

    @property
    def line(self) -> str:
        """As one would type it."""
        return shlex.join(self.command)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a node's service lies. name: the instance's, empty for p2pnn.service. root: `/`, or a folder that stands for it.

    Raises UsageError for a name that cannot be an instance's.
    """

    name: str = ""
    root: Path = Path("/")

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name {self.name!r} cannot be the name of a service; use up to {NAME_CHARS_MAX} letters,"
                " digits, '-' and '_'"
            )

    @property
    def unit(self) -> str:
        return f"p2pnn@{self.name}.service" if self.name else "p2pnn.service"

    @property
    def unit_file(self) -> Path:
        return self.units / ("p2pnn@.service" if self.name else "p2pnn.service")

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def environment(self) -> Path:
        return self.root / "opt/p2pnn/venv"

    @property
    def configurations(self) -> Path:
        return self.root / "etc/p2pnn"

    @property
    def configuration(self) -> Path:
        return self.configurations / self.name / "node.toml"

    @property
    def state(self) -> Path:
        """What a person sees of the state: a link, because the user exists only while the service runs."""
        return self.root / "var/lib" / self._folder

    @property
    def private_state(self) -> Path:
        """Where systemd keeps it."""
        return self.root / "var/lib/private" / self._folder

    @property
    def socket(self) -> Path:
        return self.root / "run" / self._folder / "p2pnn.sock"

    @property
    def _folder(self) -> str:
        return f"p2pnn-{self.name}" if self.name else "p2pnn"


@dataclass(frozen=True, slots=True)
class Origin:
    """From what a service is built. source: what pip installs; units: the folder of the unit files; python: an interpreter."""

    source: str
    units: Path
    python: str


@dataclass(frozen=True, slots=True)
class Present:
    """What is there already. units: of all installed services, as p2pnn@b.service; ports: that configurations name; the others:
    whether this service has it."""

    units: frozenset[str] = frozenset()
    unit: bool = False
    environment: bool = False
    configuration: bool = False
    state: bool = False
    ports: frozenset[int] = frozenset()


def install(at: Layout, origin: Origin, present: Present, caller: str | None) -> list[Step]:
    """The steps to a service that runs now and after every start of the machine. caller: who is to be put into the group.

    A node beside others uses their environment as it is, so that none of them is disturbed; a node that is installed already
    is brought up to date with them all.
    """
    joins_others = present.environment and bool(present.units) and at.unit not in present.units
    return [
        *(() if joins_others else _build(at, origin)),
        *_admit(caller),
        *_configure(at, origin, present),
        *_start(at, () if joins_others else sorted(present.units)),
    ]


def leave(at: Layout, force: bool, for_good: bool) -> Step:
    """What comes before the steps back, while the daemon runs. for_good: it leaves its cluster, too."""
    flags = (*(("--leave",) if for_good else ()), *(("--force",) if force else ()))
    why = "other nodes take over its work, it leaves its cluster and stops" if for_good else "others take over its work"
    program = str(at.environment / "bin/p2pnn")
    return Step(why, (program, "node", "drain", *flags, "--socket", str(at.socket)))


def remove(at: Layout, present: Present, purge: bool) -> list[Step]:
    """The steps back. purge: delete state and configuration too. Raises UsageError where there is nothing to remove."""
    others = present.units - {at.unit}
    steps = [*_stop(at, present, others), *(_purge(at, present) if purge else ())]
    if not steps:
        kept = f"; {at.state} is kept, and --purge deletes it" if present.state else ""
        raise UsageError(f"there is no service {at.unit} on this machine{kept}")
    return steps


def _build(at: Layout, origin: Origin) -> Iterator[Step]:
    python = str(at.environment / "bin/python")
    yield Step(
        "the environment that the service runs in; nothing of it lies below /home, which the service cannot see",
        (origin.python, "-I", "-m", "venv", str(at.environment)),
    )
    pip = (python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--upgrade")
    yield Step("p2pnn and what it needs", (*pip, origin.source))


def _admit(caller: str | None) -> Iterator[Step]:
    yield Step("the group whose people may use the node", ("groupadd", "--system", "--force", GROUP))
    if caller:
        yield Step(f"{caller} is one of them", ("usermod", "--append", "--groups", GROUP, caller))


def _configure(at: Layout, origin: Origin, present: Present) -> Iterator[Step]:
    copy = ("install", "-D", "--mode=0644")
    yield Step(
        "how systemd runs it, and what it may do", (*copy, str(origin.units / at.unit_file.name), str(at.unit_file))
    )
    if present.configuration:
        return
    yield Step("its configuration, to be changed", (*copy, str(origin.units / "node.toml"), str(at.configuration)))
    port = free_port(present.ports)
    if port != PORT:
        listen = f's/^listen = .*/listen = "0.0.0.0:{port}"/'
        yield Step(
            "a port that no other node of this machine has", ("sed", "--in-place", listen, str(at.configuration))
        )


def _start(at: Layout, outdated: Sequence[str]) -> Iterator[Step]:
    yield Step("systemd reads the new files", ("systemctl", "daemon-reload"))
    yield Step("it starts now, and with the machine", ("systemctl", "enable", "--now", at.unit))
    if outdated:
        yield Step("what ran from the old environment starts again", ("systemctl", "try-restart", *outdated))


def _stop(at: Layout, present: Present, others: frozenset[str]) -> Iterator[Step]:
    if present.unit:
        yield Step("it stops now, and starts no more", ("systemctl", "disable", "--now", at.unit))
        if not at.name or not any(unit.startswith("p2pnn@") for unit in others):
            yield Step("systemd's file", ("rm", "--force", str(at.unit_file)))
        yield Step("systemd forgets it", ("systemctl", "daemon-reload"))
    if present.environment and not others:
        yield Step("the environment", ("rm", "--recursive", "--force", str(at.environment)))
        yield Step("its folder", ("rmdir", "--ignore-fail-on-non-empty", str(at.environment.parent)))


def _purge(at: Layout, present: Present) -> Iterator[Step]:
    if present.state:
        both = (str(at.private_state), str(at.state))
        yield Step("its state: who it was, jobs, data, checkpoints", ("rm", "--recursive", "--force", *both))
    if present.configuration:
        yield Step("its configuration", ("rm", "--force", str(at.configuration)))
        yield Step("the folder", ("rmdir", "--ignore-fail-on-non-empty", str(at.configuration.parent)))


def free_port(taken: frozenset[int]) -> int:
    """The first one for a node of this machine that no configuration names."""
    port = PORT
    while port in taken:
        port += PORT_STEP
    return port
