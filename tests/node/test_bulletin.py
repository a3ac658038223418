"""Events of jobs, told to all members."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.job.records import JobRecord
from p2pnn.node import bulletin as module
from p2pnn.node.bulletin import Bulletin
from p2pnn.node.journal import Journals
from p2pnn.node.storage import Storage
from p2pnn.types import BlobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import JOB, A, B, C, post, until

pytestmark = pytest.mark.asyncio


class Bench:
    """Node A; the coordinator is whom the test says."""

    def __init__(self, folder: Path, coordinator: NodeId | None = A) -> None:
        self.post, self.outside = post(A)
        self.storage = Storage(folder / "state")
        self.journals = Journals(self.storage, set())
        self.coordinator = coordinator
        self.bulletin = Bulletin(self.post, self.journals, lambda: self.coordinator, lambda: (A, B, C))

    def publish(self, kind: str, **fields: Any) -> None:
        self.bulletin.publish(JOB, 1, kind, fields)

    def hear(self, node: NodeId, kind: str, **fields: Any) -> None:
        self.bulletin.receive(node, wire.Happened(JOB, 1, kind, msgspec.msgpack.encode(fields)))

    def events(self) -> list[dict[str, Any]]:
        return list(self.journals.of(JOB)._events)

    def close(self) -> None:
        self.storage.close()


def record(state: str, **changes: Any) -> JobRecord:
    return JobRecord(JOB, "toy", "train", BlobId("5" * 64), state, B, "b", 1, **changes)


async def test_every_member_is_told_and_writes_it_down_under_numbers_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.publish("state", state="queued", reason="")
    message = wire.Happened(JOB, 1, "state", msgspec.msgpack.encode({"state": "queued", "reason": ""}))
    assert bench.outside.sent == [(B, message), (C, message)]
    other = Bench(tmp_path / "other", B)
    other.hear(B, "state", state="queued", reason="")
    for one in (bench, other):
        [event] = one.events()
        assert (event["number"], event["kind"], event["state"]) == (1, "state", "queued")
        one.close()


async def test_only_the_coordinator_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path, B)
    bench.hear(C, "state", state="done", reason="I say so")
    bench.hear(A, "state", state="done", reason="I say so")
    bench.coordinator = None
    bench.hear(B, "state", state="done", reason="I was it")
    bench.coordinator = A
    bench.hear(A, "state", state="done", reason="by way of the loop")
    bench.coordinator = B
    for data in (b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode(5)):
        bench.bulletin.receive(B, wire.Happened(JOB, 1, "state", data))
    assert caplog.text.count("event refused") == 3
    assert bench.events() == []
    bench.close()


async def test_progress_goes_only_to_those_that_follow_and_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(Bulletin, "_now", staticmethod(lambda: now))
    bench = Bench(tmp_path)
    bench.publish("progress", step=1)
    assert bench.outside.sent == []
    bench.bulletin.receive(C, wire.Follow(JOB))
    bench.bulletin.receive(B, wire.Follow("other-1"))
    bench.publish("progress", step=2)
    bench.publish("tokens", tokens=[7])
    assert [node for node, _ in bench.outside.sent] == [C, C]
    now += 3 * module.FOLLOW_S + 0.1
    bench.publish("progress", step=3)
    assert len(bench.outside.sent) == 2, "it has not said so again"
    bench.close()


async def test_followers_are_bounded_and_those_that_went_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLLOWED_MAX", 3)
    now = 100.0
    monkeypatch.setattr(Bulletin, "_now", staticmethod(lambda: now))
    bench = Bench(tmp_path)
    for number in range(10):
        bench.bulletin.receive(B, wire.Follow(f"job-{number}"))
    assert len(bench.bulletin._followers) == 3
    bench.bulletin.receive(B, wire.Follow("job-0"))
    now += 1000.0
    bench.bulletin.receive(C, wire.Follow(JOB))
    bench.publish("progress", step=1)
    assert [node for node, _ in bench.outside.sent] == [C]
    bench.close()


async def test_who_follows_a_job_of_another_says_so_until_it_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLLOW_S", 0.001)
    bench = Bench(tmp_path, B)
    bench.hear(B, "state", state="queued")
    found: list[dict[str, Any]] = []

    async def follow() -> None:
        async for event in bench.bulletin.follow(JOB, 0):
            found.append(event)

    following = asyncio.ensure_future(follow())
    await until(lambda: len(bench.outside.of(wire.Follow, B)) >= 2)
    bench.coordinator = C  # it is replaced: the next one is told
    await until(lambda: bench.outside.of(wire.Follow, C))
    bench.hear(C, "progress", step=4)
    bench.hear(C, "state", state="done")
    async with asyncio.timeout(10):
        await following
    assert [event.get("state") or event["step"] for event in found] == ["queued", 4, "done"]
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody says so any more"
    bench.close()


async def test_a_node_that_was_not_there_from_the_beginning_knows_not_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, B)
    bench.hear(B, "epoch", epoch=3)
    assert not bench.bulletin.knows_all_of(record("running"))
    bench.close()
    bench = Bench(tmp_path / "other", B)
    bench.hear(B, "state", state="queued")
    assert bench.bulletin.knows_all_of(record("running"))
    assert not bench.bulletin.knows_all_of(record("done")), "it missed the end"
    bench.hear(B, "state", state="done")
    assert bench.bulletin.knows_all_of(record("done"))
    bench.close()


async def test_an_end_that_was_missed_comes_with_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MISSED_S", 0.0)
    bench = Bench(tmp_path, B)
    bench.hear(B, "state", state="queued")
    bench.bulletin.learnt(record("running"))
    bench.bulletin.learnt(record("failed", reason="node c: the loss became NaN"))
    bench.bulletin.learnt(record("failed", reason="node c: the loss became NaN"))
    await until(lambda: bench.journals.of(JOB).ended)
    await asyncio.sleep(0)
    assert [(e["state"], e.get("reason")) for e in bench.events()] == [
        ("queued", None),
        ("failed", "node c: the loss became NaN"),
    ]
    bench.close()


async def test_a_plan_that_is_too_large_for_a_message_stays_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.publish("plan", plan="x" * (wire.RECORD_BYTES_MAX + 1))
    assert bench.outside.sent == []
    assert [event["kind"] for event in bench.events()] == ["plan"]
    bench.close()
