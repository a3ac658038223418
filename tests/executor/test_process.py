"""Starting a process and saying why one ended; how it runs is in test_loop."""

from __future__ import annotations

import os

import pytest

from p2pnn.executor.process import NICE, THREAD_VARIABLES, environment, exit_reason, spawn


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit status 0"),
        (1, "exit status 1"),
        (-9, "killed by signal 9 (SIGKILL; the system kills with it what takes too much memory)"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-200, "killed by signal 200 (unknown)"),
    ],
)
def test_reasons(status: int, text: str) -> None:
    assert exit_reason(status).endswith(text)


def test_no_token_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P2PNN_TOKEN", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in environment(1).values()


def test_threads_are_said_to_every_blas() -> None:
    found = environment(3)
    assert {found[name] for name in THREAD_VARIABLES} == {"3"}
    assert found["PATH"] == os.environ["PATH"]


def test_it_is_niced_inherits_only_its_own_and_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    spawned = spawn(4096)
    pid = spawned.process.pid
    os.set_blocking(spawned.socket.fileno(), True)
    while os.getpriority(os.PRIO_PROCESS, pid) != os.getpriority(os.PRIO_PROCESS, 0) + NICE:
        assert spawned.process.poll() is None
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 16
    spawned.kill()
    spawned.kill()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
