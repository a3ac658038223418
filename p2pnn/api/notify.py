"""What systemd is told of a daemon that it runs: that it is ready, what it does, that its loop is healthy, that it stops.

The protocol (sd_notify(3)) is one datagram of `NAME=value` lines to the unix socket that NOTIFY_SOCKET names, where `@`
begins a name in the abstract namespace; no library is needed for it. Three rules are ours:

- What is told is never waited for, and a socket that cannot be reached is one warning: a daemon that works must not fail
  for want of somebody who watches.
- The variables are taken out of the environment, so that no process that the daemon starts can speak for it.
- The watchdog is fed by a timer of the loop. A loop that hangs feeds nothing, and one that turns so late that peers suffer
  feeds nothing either: a tick later than a quarter of the watchdog's time is none. Ticks come four times within that time,
  so one late turn is forgiven and a loop that stays late is not.

STATUS is asked for once a second and told when it differs: what it is made of changes in many places, and has one reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("p2pnn.node")

TICKS: Final = 4
"""Ticks of the loop within the watchdog's time."""

LAG_SHARE: Final = 0.25
"""Of the watchdog's time: a tick that is later says that the loop is not healthy."""

STATUS_INTERVAL_S: Final = 1.0
STATUS_CHARS_MAX: Final = 200
"""It is one line of `systemctl status`."""

EXTEND_INTERVAL_S: Final = 5.0
EXTEND_S: Final = 15.0
"""How much more time each word of a daemon that stops asks for; a loop that hangs says none, and is killed then."""

STOP_S_MAX: Final = 120.0
"""For no longer than this in all: a disk that takes longer is broken."""

assert EXTEND_INTERVAL_S < EXTEND_S < STOP_S_MAX


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a service manager wants. address: of its socket, empty for none; watchdog_s: its patience, 0 for endless."""

    address: str = ""
    watchdog_s: float = 0.0


def take(environ: MutableMapping[str, str], pid: int) -> Wishes:
    """Read the service manager's variables and remove them. pid: this process's; a watchdog of another is not ours to feed."""
    address = environ.pop("NOTIFY_SOCKET", "")
    microseconds, whose = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if whose not in ("", str(pid)) or not microseconds:
        return Wishes(address)
    if not microseconds.isdecimal():
        log.warning("the service manager's watchdog is not fed: WATCHDOG_USEC=%r is no number", microseconds)
        return Wishes(address)
    return Wishes(address, int(microseconds) / 1e6)


class Watchdog:
    """When to tick, and whether a tick came in time, so that it feeds. Pure. limit_s: how long the manager waits for food."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._due = now + limit_s / TICKS

    def get_timer(self) -> float:
        """When the next tick is due."""
        return self._due

    def handle_timer(self, now: float) -> bool:
        """A tick; whether to feed the watchdog."""
        lag_s = now - self._due
        self._due = now + self._limit_s / TICKS
        return lag_s <= self._limit_s * LAG_SHARE


class Notices:
    """The way to the service manager; one to nowhere where there is none. address: as in NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._name = address
        self._failed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def send(self, **fields: str | int) -> bool:
        """Tell these fields in one datagram; whether they arrived. The first failure is one warning, others are silent."""
        if self._socket is None:
            return True
        text = "\n".join(f"{name}={_line(value)}" for name, value in fields.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning(
                    "the service manager cannot be told socket=%s reason=%s", self._name, error.strerror or error
                )
            self._failed = True
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class Reporter:
    """Keeps the service manager informed from the loop: `ready`, then `stopping`, then `close`. Nothing runs where there is none.

    status: the line that it shows, asked for once a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wishes: Wishes, status: Callable[[], str]) -> None:
        self._loop = loop
        self._wishes = wishes
        self._status = status
        self._notices = Notices(wishes.address)
        self._ready = False
        self._told = ""
        self._stop_by = 0.0
        self._timers: dict[Callable[..., None], asyncio.TimerHandle] = {}

    def ready(self) -> None:
        """The daemon listens and joins."""
        if not self._wishes.address:
            return
        self._tell()
        if self._wishes.watchdog_s:
            watchdog = Watchdog(self._wishes.watchdog_s, self._loop.time())
            self._at(watchdog.get_timer(), self._feed, watchdog)

    def stopping(self) -> None:
        """The end has begun. While it lasts, and the loop turns, the manager is asked for patience."""
        if not self._wishes.address:
            return
        self._cancel(self._tell)
        self._notices.send(STOPPING=1, STATUS="stopping: ends its jobs and tells its peers")
        self._stop_by = self._loop.time() + STOP_S_MAX
        self._at(self._loop.time() + EXTEND_INTERVAL_S, self._extend)

    def close(self) -> None:
        """Tell nothing more; harmless when that is done."""
        for call in list(self._timers):
            self._cancel(call)
        self._notices.close()

    # --- how

    def _tell(self) -> None:
        """READY until it was heard once, and STATUS where it differs from what was heard last."""
        line = self._status()
        fields: dict[str, str | int] = {} if self._ready else {"READY": 1}
        if line != self._told:
            fields["STATUS"] = line
        if fields and self._notices.send(**fields):
            self._ready, self._told = True, line
        self._at(self._loop.time() + STATUS_INTERVAL_S, self._tell)

    def _feed(self, watchdog: Watchdog) -> None:
        if watchdog.handle_timer(self._loop.time()):
            self._notices.send(WATCHDOG=1)
        else:
            log.warning(
                "the loop turned late, the service manager's watchdog is not fed limit_s=%g", self._wishes.watchdog_s
            )
        self._at(watchdog.get_timer(), self._feed, watchdog)

    def _extend(self) -> None:
        left_s = self._stop_by - self._loop.time()
        if left_s > 0:
            self._notices.send(EXTEND_TIMEOUT_USEC=int(min(EXTEND_S, left_s) * 1e6))
            self._at(self._loop.time() + EXTEND_INTERVAL_S, self._extend)

    def _at(self, due: float, call: Callable[..., None], *arguments: object) -> None:
        self._timers[call] = self._loop.call_at(due, call, *arguments)

    def _cancel(self, call: Callable[..., None]) -> None:
        with contextlib.suppress(KeyError):
            self._timers.pop(call).cancel()


def status(peers: int, job: str | None, waiting: int) -> str:
    """`2 peers alive, works on digits-3f2a, 1 job waits`. peers: living ones; job: who has the node's place; waiting: for it."""
    parts = [f"{peers} peer{'s' * (peers != 1)} alive" if peers else "no peers", f"works on {job}" if job else "no job"]
    if waiting:
        parts.append(f"{waiting} jobs wait" if waiting > 1 else "1 job waits")
    return ", ".join(parts)


def _line(value: str | int) -> str:
    """One line, whatever it is made of: a line break would begin a field that somebody else wrote."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:STATUS_CHARS_MAX]
