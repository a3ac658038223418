"""A checkpoint from its command to the record."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pnn.job.actions import KeepBlobs, Publish, Remember
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.checkpointing import Checkpointing
from p2pnn.job.ledger import Ledger
from p2pnn.job.records import KEPT_CHECKPOINTS
from p2pnn.job.script import Done
from p2pnn.types import BlobId, JobId, NodeId
from tests.job.test_supervisor import NAMES, NODES, make_plan, make_record, make_spec


class Bench:
    """Nodes a and b of the plan, and c beside them. The test answers."""

    def __init__(self, **changes: Any) -> None:
        spec = make_spec()
        record = make_record(spec, state="running", plan=make_plan(NODES[:2]), generation=1, **changes)
        self.ledger = Ledger(record, dict(NAMES))
        self.completed: list[Manifest] = []
        self.errors: list[str] = []
        self.checkpoints = Checkpointing(
            self.ledger, self.completed.append, lambda error, torn: self.errors.append(error)
        )
        self.checkpoints.assign(NODES[:2])
        self.checkpoints.at(0.0)
        self.keeps: list[KeepBlobs] = []
        self.events: list[Publish] = []
        self.remembered: list[Remember] = []

    def take(self) -> list[KeepBlobs]:
        """What buddies are asked since the last call."""
        new = len(self.keeps)
        while (action := self.ledger.next_action()) is not None:
            if isinstance(action, KeepBlobs):
                self.keeps.append(action)
            elif isinstance(action, Publish):
                self.events.append(action)
            elif isinstance(action, Remember):
                self.remembered.append(action)
        return self.keeps[new:]

    def write(self, number: int, step: int, *, best: bool = False, error: str = "") -> None:
        self.checkpoints.begin(number, manifest(step), best=best)
        found = {node: Done(number, part(node, step)) for node in NODES[:2]}
        if error:
            found[NODES[1]] = Done(number, b"", error)
        self.checkpoints.written(number, found)


def manifest(step: int) -> Manifest:
    return Manifest(JobId("toy-1"), BlobId("5" * 64), step, step // 10, ())


def part(node: NodeId, step: int) -> bytes:
    return msgspec.msgpack.encode(Part(BlobId(f"{step:063d}{node[0]}"), 10, bytes(32)))


def test_it_counts_when_every_part_has_its_second_copy() -> None:
    bench = Bench()
    bench.checkpoints.begin(4, manifest(10), best=True)
    assert bench.checkpoints.writing == ((4, manifest(10), True),)
    bench.checkpoints.written(4, {node: Done(4, part(node, 10)) for node in NODES[:2]}, uneven=(3, 1))
    assert bench.checkpoints.writing == ()
    first, second = bench.take()
    assert {(first.source, first.node), (second.source, second.node)} == {(NODES[0], NODES[1]), (NODES[1], NODES[0])}
    [(copied, best)] = bench.checkpoints.copying
    assert (copied.step, len(copied.parts), copied.uneven, best, bench.checkpoints.is_copying) == (
        10,
        2,
        (3, 1),
        True,
        True,
    )
    bench.checkpoints.kept(first.node, first.request, "")
    bench.take()
    assert bench.ledger.record.checkpoints == ()
    bench.checkpoints.kept(second.node, second.request, "")
    bench.take()
    record = bench.ledger.record
    assert record.checkpoints == (copied,) == tuple(bench.completed)
    assert (record.best, record.step) == (copied, 10)
    assert [e.fields for e in bench.events] == [{"step": 10, "epoch": 1, "complete": True, "error": ""}]
    assert bench.remembered[-1].record == record
    assert not bench.checkpoints.is_copying


def test_one_that_a_node_could_not_write_is_shown_and_never_copied() -> None:
    bench = Bench()
    bench.write(4, 10, error="the disk is full")
    assert bench.take() == []
    assert bench.errors == [bench.checkpoints.last_error] == ["node b: the disk is full"]
    assert bench.events[-1].fields == {"step": 10, "epoch": 1, "complete": False, "error": "node b: the disk is full"}
    assert bench.ledger.record.checkpoints == ()


def test_only_the_newest_are_kept_and_the_best_stays() -> None:
    bench = Bench()
    for number in range(1, KEPT_CHECKPOINTS + 3):
        bench.write(number, 10 * number, best=number == 1)
        for keep in bench.take():
            bench.checkpoints.kept(keep.node, keep.request, "")
    bench.take()
    steps = [found.step for found in bench.ledger.record.checkpoints]
    assert steps == [10 * n for n in range(3, KEPT_CHECKPOINTS + 3)]
    assert bench.ledger.record.best is not None
    assert bench.ledger.record.best.step == 10


def test_one_that_the_last_coordinator_had_completed_is_copied_again_and_counted_once() -> None:
    bench = Bench()
    whole = msgspec.structs.replace(manifest(10), parts=(Part(BlobId("6" * 64), 1, bytes(32)),) * 2)
    bench.ledger.change(checkpoints=(whole,))
    bench.checkpoints.copy(whole, best=False)
    for keep in bench.take():
        bench.checkpoints.kept(keep.node, keep.request, "")
    assert bench.take() == []
    assert bench.ledger.record.checkpoints == (whole,)
    assert bench.completed == [whole], "a pause may wait for it"
    assert (bench.events, bench.remembered) == ([], [])


def test_a_buddy_that_is_lost_or_silent_is_replaced_and_at_last_one_copy_has_to_do() -> None:
    bench = Bench()
    bench.write(1, 10)
    lost, answers = bench.take()
    bench.checkpoints.kept(answers.node, answers.request, "")
    del bench.ledger.members[lost.node]
    bench.checkpoints.member_failed(lost.node)
    [other] = bench.take()
    assert other.node == NODES[2]
    due = bench.checkpoints.get_timer()
    assert due is not None
    bench.checkpoints.at(due)
    bench.checkpoints.handle_timer()
    assert bench.take() == []
    assert [found.step for found in bench.completed] == [10]
    [warning] = [e.fields["text"] for e in bench.events if e.kind == "warning"]
    assert "the checkpoint of step 10 has only one copy, on node a" in warning
    assert bench.checkpoints.get_timer() is None


def test_no_checkpoint_counts_before_the_data_has_its_second_copy() -> None:
    bench = Bench()
    bench.checkpoints.keep_data(NODES[0], (BlobId("d" * 64),))
    bench.write(1, 10)
    data, *parts = bench.take()
    for keep in parts:
        bench.checkpoints.kept(keep.node, keep.request, "")
    bench.take()
    assert bench.completed == []
    bench.checkpoints.kept(data.node, data.request, "")
    assert [found.step for found in bench.completed] == [10]
