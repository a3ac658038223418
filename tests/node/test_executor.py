"""The daemon's end of a real executor process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from p2pnn.errors import LocalProtocolError, StorageError
from p2pnn.executor import commands, process
from p2pnn.node import executor as executor_module
from p2pnn.node.executor import Executor
from tests.node.nodes import until

pytestmark = pytest.mark.asyncio


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_what_it_says_arrives_and_ending_it_is_no_failure(tmp_path: Path) -> None:
    said: list[Any] = []
    exits: list[str] = []
    executor = await Executor.start(4096, 1, said.append, exits.append)
    room = executor.room(64, 128)
    assert room is not None
    assert len(room) == 128
    executor.send(commands.Prepare(str(tmp_path / "spec"), b"", 0, str(tmp_path)))
    await until(lambda: said)
    assert isinstance(said[0], commands.Failed)
    assert "cannot be read" in said[0].error
    await executor.end()
    await executor.end()
    assert gone(executor.pid)
    assert executor.room(64, 128) is None
    executor.send(commands.Sent(0, 0))


async def test_a_killed_process_is_reaped_and_its_death_becomes_a_sentence() -> None:
    exits: list[str] = []
    executor = await Executor.start(4096, 1, lambda message: None, exits.append)
    os.kill(executor.pid, signal.SIGKILL)
    await until(lambda: exits)
    assert "its compute process was killed by signal 9 (SIGKILL" in exits[0]
    assert executor.room(0, 64) is None
    await executor.end()
    assert len(exits) == 1
    assert gone(executor.pid)


async def test_what_the_owner_cannot_take_is_told_as_a_sentence(tmp_path: Path) -> None:
    exits: list[str] = []

    def refuse(message: Any) -> None:
        raise LocalProtocolError("Squares has 70,000 bytes; at most 64 KiB may go")

    executor = await Executor.start(0, 1, refuse, exits.append)
    executor.send(commands.Prepare(str(tmp_path / "spec"), b"", 0, str(tmp_path)))
    await until(lambda: exits)
    assert exits[0] == "Squares has 70,000 bytes; at most 64 KiB may go"
    await executor.end()


async def test_one_that_reads_none_of_far_too_many_messages_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no peer fills the daemon's memory by messages without bodies."""
    monkeypatch.setattr(executor_module, "UNREAD_BYTES_MAX", 1 << 20)
    exits: list[str] = []
    executor = await Executor.start(0, 1, lambda message: None, exits.append)
    os.kill(executor.pid, signal.SIGSTOP)
    try:
        for sequence in range(200_000):
            executor.send(commands.Marked(0, 0, sequence))
            if exits:
                break
        assert exits
        assert "left more than 1 MiB of messages unread" in exits[0]
        executor.send(commands.Marked(0, 0, 0))
    finally:
        await executor.end()
    assert len(exits) == 1
    assert gone(executor.pid)


async def test_a_system_that_starts_no_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arena_bytes: int, threads: int) -> Any:
        raise StorageError("the system starts no compute process: too many open files")

    monkeypatch.setattr(process, "spawn", refuse)
    with pytest.raises(StorageError, match="starts no compute process"):
        await Executor.start(0, 1, lambda message: None, lambda reason: None)


async def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    spawned: list[process.Spawned] = []
    real = process.spawn

    def slow(arena_bytes: int, threads: int) -> process.Spawned:
        begun.set()
        go_on.wait()
        spawned.append(real(arena_bytes, threads))
        return spawned[0]

    monkeypatch.setattr(process, "spawn", slow)
    start = asyncio.ensure_future(Executor.start(0, 1, lambda message: None, lambda reason: None))
    await asyncio.to_thread(begun.wait)
    start.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert gone(spawned[0].process.pid)
