"""What a service manager hears: of a daemon that starts, works, hangs and stops, and of one that nobody listens to."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from p2pnn.api.notify import (
    EXTEND_INTERVAL_S,
    EXTEND_S,
    STATUS_CHARS_MAX,
    STATUS_INTERVAL_S,
    STOP_S_MAX,
    Notices,
    Reporter,
    Watchdog,
    Wishes,
    status,
    take,
)
from p2pnn.zoo.mlp import build
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until

Fields = dict[str, str]
HEAR_TIMEOUT_S = 30.0


class Listening:
    """The service manager's end. name: as in NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.setblocking(False)

    def hear(self, timeout_s: float = 0.0) -> Fields | None:
        """The next datagram, None where none comes in time."""
        if not select.select([self.socket], [], [], timeout_s)[0]:
            return None
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def all(self) -> list[Fields]:
        return list(iter(self.hear, None))

    def until(self, wanted: Callable[[Fields], bool], what: str) -> Fields:
        heard: list[Fields] = []
        deadline = time.monotonic() + HEAR_TIMEOUT_S
        while (left := deadline - time.monotonic()) > 0:
            if (fields := self.hear(left)) is not None:
                heard.append(fields)
                if wanted(fields):
                    return fields
        raise AssertionError(f"nothing says that {what}: {heard[-20:]}")

    def until_status(self, text: str) -> None:
        self.until(lambda fields: fields.get("STATUS") == text, f"its status is {text!r}")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    found = Listening(str(tmp_path / "notify"))
    yield found
    found.socket.close()


@pytest.fixture
def abstract() -> Iterator[Listening]:
    found = Listening(f"@p2pnn-{secrets.token_hex(8)}")
    yield found
    found.socket.close()


class Loop:
    """A loop whose clock a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, call: Callable[..., None], *arguments: Any) -> Any:
        entry = (due, call, arguments)
        self.due.append(entry)
        loop = self

        class Handle:
            def cancel(self) -> None:
                if entry in loop.due:
                    loop.due.remove(entry)

        return Handle()

    def turn(self, seconds: float) -> None:
        """Let time pass, everything in time."""
        end = self.now + seconds
        while (entry := min(self.due, key=lambda entry: entry[0], default=None)) and entry[0] <= end:
            self.due.remove(entry)
            self.now, call, arguments = entry
            call(*arguments)
        self.now = end

    def hang(self, seconds: float) -> None:
        """Let time pass without a turn, then run what was due meanwhile."""
        self.now += seconds
        due = [entry for entry in self.due if entry[0] <= self.now]
        self.due = [entry for entry in self.due if entry[0] > self.now]
        for _, call, arguments in sorted(due, key=lambda entry: entry[0]):
            call(*arguments)


def reporter(loop: Loop, address: str, watchdog_s: float = 0.0, line: Callable[[], str] = lambda: "idle") -> Reporter:
    return Reporter(cast(asyncio.AbstractEventLoop, loop), Wishes(address, watchdog_s), line)


# --- the parts


@pytest.mark.parametrize(
    ("given", "wishes"),
    [
        ({}, Wishes()),
        ({"NOTIFY_SOCKET": "/run/n"}, Wishes("/run/n")),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000"}, Wishes("@n", 30.0)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "7"}, Wishes("@n", 2.5)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "8"}, Wishes("@n")),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "soon"}, Wishes("@n")),
        ({"WATCHDOG_USEC": "-1", "WATCHDOG_PID": "7"}, Wishes()),
    ],
)
def test_the_variables_are_read_and_taken_away(given: dict[str, str], wishes: Wishes) -> None:
    environ = {**given, "HOME": "/"}
    assert take(environ, pid=7) == wishes
    assert environ == {"HOME": "/"}


def test_the_watchdog_is_fed_by_ticks_in_time_only() -> None:
    watchdog = Watchdog(8.0, now=100.0)
    for after, late, fed in (
        (2.0, 0.0, True),
        (2.0, 2.0, True),
        (2.0, 2.1, False),
        (2.0, 60.0, False),
        (2.0, 0.0, True),
    ):
        due = watchdog.get_timer()
        assert watchdog.handle_timer(due + late) is fed, late
        assert watchdog.get_timer() == due + late + after


@pytest.mark.parametrize(
    ("peers", "job", "waiting", "line"),
    [
        (0, None, 0, "no peers, no job"),
        (1, None, 0, "1 peer alive, no job"),
        (3, "digits-3f2a", 0, "3 peers alive, works on digits-3f2a"),
        (2, "digits-3f2a", 1, "2 peers alive, works on digits-3f2a, 1 job waits"),
        (2, "digits-3f2a", 5, "2 peers alive, works on digits-3f2a, 5 jobs wait"),
    ],
)
def test_the_line_of_status(peers: int, job: str | None, waiting: int, line: str) -> None:
    assert status(peers, job, waiting) == line


def test_a_value_is_one_line_of_bounded_length(abstract: Listening) -> None:
    notices = Notices(abstract.name)
    assert notices.send(STATUS="works on a\nMAINPID=1\r\x00 \u2028é" + "x" * 300)
    heard = abstract.hear()
    notices.close()
    assert heard is not None
    assert set(heard) == {"STATUS"}
    assert heard["STATUS"].startswith("works on a?MAINPID=1?? ?é")
    assert len(heard["STATUS"]) == STATUS_CHARS_MAX


def test_ready_once_and_status_when_it_differs(listening: Listening) -> None:
    loop, lines = Loop(), ["idle"]
    told = reporter(loop, listening.name, line=lambda: lines[-1])
    assert listening.all() == []
    told.ready()
    assert listening.all() == [{"READY": "1", "STATUS": "idle"}]
    loop.turn(10 * STATUS_INTERVAL_S)
    assert listening.all() == []
    lines.append("busy")
    loop.turn(2 * STATUS_INTERVAL_S)
    assert listening.all() == [{"STATUS": "busy"}]
    told.close()
    assert loop.due == []


def test_a_loop_that_hangs_or_turns_late_feeds_nothing(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    told = reporter(loop, listening.name, watchdog_s=8.0)
    told.ready()
    listening.all()
    loop.turn(8.0)
    assert listening.all() == [{"WATCHDOG": "1"}] * 4
    assert caplog.records == []
    for _ in range(5):  # each tick late by more than 2 s
        loop.hang(4.5)
    assert {"WATCHDOG": "1"} not in listening.all()
    assert len(caplog.records) == 5
    assert "turned late" in caplog.text
    loop.turn(2.0)
    assert listening.all() == [{"WATCHDOG": "1"}]
    told.close()
    loop.turn(8.0)
    assert listening.all() == []


def test_who_stops_asks_for_patience_but_not_for_ever(listening: Listening) -> None:
    loop = Loop()
    told = reporter(loop, listening.name, watchdog_s=2 * STOP_S_MAX)
    told.ready()
    told.stopping()
    first, second = listening.all()
    assert "READY" in first
    assert second == {"STOPPING": "1", "STATUS": "stopping: ends its jobs and tells its peers"}
    loop.turn(2 * EXTEND_INTERVAL_S)
    assert listening.all() == [{"EXTEND_TIMEOUT_USEC": str(int(EXTEND_S * 1e6))}] * 2
    asked: list[Fields] = []
    for _ in range(int(STOP_S_MAX / EXTEND_INTERVAL_S)):
        loop.turn(EXTEND_INTERVAL_S)
        asked += [heard for heard in listening.all() if "WATCHDOG" not in heard]
    assert asked[-1] == {"EXTEND_TIMEOUT_USEC": str(int(EXTEND_INTERVAL_S * 1e6))}  # the last one ends with the limit
    loop.turn(STOP_S_MAX)
    assert {name for heard in listening.all() for name in heard} <= {"WATCHDOG"}
    told.close()


def test_nobody_who_listens_is_one_warning_and_ready_is_said_when_somebody_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop()
    told = reporter(loop, str(tmp_path / "late"), watchdog_s=1.0)
    told.ready()
    loop.turn(10.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be told socket=" in caplog.text
    listening = Listening(str(tmp_path / "late"))
    loop.turn(STATUS_INTERVAL_S)
    assert {"READY": "1", "STATUS": "idle"} in listening.all()
    told.close()
    listening.socket.close()


def test_without_a_service_manager_nothing_runs() -> None:
    loop = Loop()
    told = reporter(loop, "", watchdog_s=1.0)
    told.ready()
    told.stopping()
    assert loop.due == []
    told.close()


# --- a real daemon


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Mesh]:
    with mesh(tmp_path, cold=True) as m:
        yield m


def test_a_daemon_from_its_start_to_its_end(one: Mesh, abstract: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", abstract.name)
    monkeypatch.setenv("WATCHDOG_USEC", "800000")
    node = one.start("a")
    assert abstract.until(lambda heard: True, "it is ready") == {"READY": "1", "STATUS": "no peers, no job"}
    assert abstract.until(lambda heard: "WATCHDOG" in heard, "its loop turns") == {"WATCHDOG": "1"}
    monkeypatch.delenv("NOTIFY_SOCKET")
    monkeypatch.delenv("WATCHDOG_USEC")
    one.start("b")
    abstract.until_status("1 peer alive, no job")
    assert works(one, abstract) == set()
    assert goes_silent_when_stopped(node.process.pid, abstract)
    node.process.send_signal(signal.SIGTERM)
    abstract.until(lambda heard: heard.get("STOPPING") == "1", "it stops")
    assert node.process.wait(10) == 0


def works(m: Mesh, listening: Listening) -> set[str]:
    """Run a job, with another behind it, and cancel both. The service manager's variables that its compute process has."""
    spec, blobs = make_job(build((1, 8, 8), classes=4), blobs_of(), epochs=100_000, nodes=("a",))
    first = m.submit("a", spec, blobs)
    listening.until_status(f"1 peer alive, works on {first}")
    second = m.submit("a", spec, {})
    listening.until_status(f"1 peer alive, works on {first}, 1 job waits")
    wait_until(lambda: m["a"].get("node")["executor_pid"] is not None, "its compute process runs")
    environ = Path(f"/proc/{m['a'].get('node')['executor_pid']}/environ").read_bytes()
    for job in (second, first):
        m["a"].post(f"jobs/{job}/cancel")
    listening.until_status("1 peer alive, no job")
    return {name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name.encode() in environ}


def goes_silent_when_stopped(pid: int, listening: Listening) -> bool:
    """Stop the process, as a hang would, for the watchdog's time; it speaks again when it goes on."""
    os.kill(pid, signal.SIGSTOP)
    state = Path(f"/proc/{pid}/stat")
    wait_until(lambda: state.read_text().rpartition(") ")[2].startswith("T"), "it stands still")
    listening.all()
    silent = listening.hear(0.8) is None
    os.kill(pid, signal.SIGCONT)
    listening.until(lambda heard: "WATCHDOG" in heard, "its loop turns again")
    return silent
