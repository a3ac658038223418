"""What every test gets: a home of its own, and a session that fails if it leaves a process behind."""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from p2pnn.config import Places
from tests.support import warm

LEAK_WAIT_S = 5.0
MARK = f"P2PNN_TEST_SESSION={secrets.token_hex(8)}"
"""Inherited by every process that a test starts, also by those of its children: so a leak is known by its environment."""

left_over: list[str] = []

# A property is tried with fresh examples by every run, so few at a time find as much in the end; `-m long` and
# `--hypothesis-profile=many` try 100 in one run. None is timed: what else the machine does is no property.
hypothesis.settings.register_profile("quick", max_examples=40, deadline=None)
hypothesis.settings.register_profile("many", max_examples=100, deadline=None)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home and fresh XDG folders, so that no test sees or changes the person's; no P2PNN_* settings.

    The name is short: a unix socket's path has about a hundred bytes.
    """
    home = tmp_path_factory.getbasetemp() / f"h{secrets.token_hex(4)}"
    for variable in [name for name in os.environ if name.startswith("P2PNN_") and not MARK.startswith(name)]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(home))
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(home / variable.split("_")[1].lower()))
    return home


@pytest.fixture
def warm_processes(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Daemons of local meshes and executors start without the time of their imports, and the machine is measured once."""
    monkeypatch.setattr("p2pnn.executor.process.subprocess", warm)
    monkeypatch.setattr("p2pnn.cli.local.subprocess", warm)
    with warm.measured(Places.of().profile_cache):
        yield


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("quick" if config.getoption("-m") == "not long" else "many")


def pytest_sessionstart() -> None:
    name, _, value = MARK.partition("=")
    os.environ[name] = value


def pytest_sessionfinish(session: pytest.Session) -> None:
    warm.close()
    deadline = time.monotonic() + LEAK_WAIT_S
    while (leaked := processes_of_this_session()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number, command in leaked.items():
        left_over.append(f"process {number} outlived the tests: {command}")
        os.kill(number, signal.SIGKILL)
    if leaked:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in left_over:
        terminalreporter.write_line(line, red=True)


def processes_of_this_session() -> dict[int, str]:
    """Number → command line of the living processes, other than this one, that carry MARK. Empty where there is no /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and MARK.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue
    return found
