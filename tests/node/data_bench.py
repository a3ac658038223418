"""Node B in a data-parallel start that A coordinates, with executors that only keep what they are sent.

A and B compute, for the replicas 0 and 1; B holds shard 0 and C shard 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.executor import commands
from p2pnn.job.spec import DataParallel
from p2pnn.node import part as module
from p2pnn.ps.layout import part_sizes, server_layout, worker_layout
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, C, plan_of_data, toy_of_data, until
from tests.node.test_place import Bench, FakeExecutor


def fake_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Executor", FakeExecutor)
    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setattr(FakeExecutor, "error", None)


class DataBench(Bench):
    """Call `await begin()`; then `compute` and `serve` are the executors."""

    compute: FakeExecutor
    serve: FakeExecutor

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, toy_of_data(data=DataParallel(**settings)))
        self.plan = plan_of_data(self.spec, [A, B, C], workers=(0, 1), homes=(1, 2))
        self.served = server_layout(self.spec, self.plan, 1)
        self.worked = worker_layout(self.spec, self.plan, 1, 0)

    async def begin(self) -> None:
        """Reserve, prepare, and wait for the executors, which are ready at once."""
        self.reserve()
        self.prepare(plan=msgspec.msgpack.encode(self.plan), nodes=(A, B, C))
        await until(lambda: len(FakeExecutor.made) == 2 and all(made.sent for made in FakeExecutor.made))
        self.compute, self.serve = FakeExecutor.made
        self.prepares = [made.sent.pop() for made in FakeExecutor.made]

    def both_ready(self) -> None:
        self.compute.say(commands.Prepared(3))
        self.serve.say(commands.Prepared(4))

    @property
    def push_bytes(self) -> int:
        """Of the one part of a push to shard 0."""
        [size] = part_sizes(self.served.sharding.shards[0], "float32")
        return size

    def push(self, sequence: int = 1, worker: int = 0, shard: int = 0, part: int = 0) -> wire.Push:
        return wire.Push(JOB, shard, 1, worker, sequence, 0, self.push_bytes, part, 7, 6, True, 5, 2)

    def values(self, shard: int = 1, worker: int = 1, whole: bool = True) -> wire.Values:
        return wire.Values(JOB, 1, shard, worker, 3, 0, 8, 7, whole, 4, "LATE", 9)

    def value_bytes(self, shard: int = 1, whole: bool = True) -> int:
        return self.worked.values[shard][0 if whole else 1]
