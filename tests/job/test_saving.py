"""When a checkpoint counts."""

from __future__ import annotations

import pytest

from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.saving import CHUNK_BYTES, KEEP_BYTES_PER_S, KEEP_S, Complete, DataAlone, Saver, Torn
from p2pnn.types import BlobId, JobId, NodeId

A, B, C = (NodeId(c) for c in "abc")


def manifest(step: int, nodes: int) -> Manifest:
    parts = tuple(Part(BlobId(f"part-{step}-{n}"), 1, ()) for n in range(nodes))
    return Manifest(JobId("j"), BlobId("spec"), step, 0, parts)


def saver(nodes: list[NodeId], members: list[NodeId]) -> Saver:
    found = Saver({m: m for m in members}, BlobId("spec"), 0, 0)
    found.nodes = nodes
    return found


def test_each_part_goes_to_the_next_node_and_both_must_have_it() -> None:
    s = saver([A, B], [A, B])
    s.save(manifest(1, 2), best=True)
    assert [(r.source, r.node, r.blobs) for r in s.requests] == [
        (A, B, ("part-1-0", "spec")),
        (B, A, ("part-1-1", "spec")),
    ]
    s.kept(C, 1, "")  # not asked
    s.kept(B, 1, "")
    assert s.busy
    assert s.next_outcome() is None
    s.kept(A, 2, "")
    assert s.next_outcome() == Complete(manifest(1, 2), True)
    assert not s.busy


def test_a_plan_of_one_node_uses_any_other_member_and_alone_one_copy_has_to_do() -> None:
    s = saver([A], [A, C])
    s.save(manifest(1, 1), best=False)
    assert s.requests[0].node == C
    alone = saver([A], [A])
    alone.save(manifest(1, 1), best=False)
    assert alone.next_outcome() == Complete(manifest(1, 1), False)


def test_checkpoints_complete_in_their_order() -> None:
    s = saver([A], [A, B])
    s.save(manifest(1, 1), best=False)
    s.save(manifest(2, 1), best=False)
    s.kept(B, 2, "")
    assert s.next_outcome() is None
    s.kept(B, 1, "")
    assert [s.next_outcome(), s.next_outcome()] == [Complete(manifest(1, 1), False), Complete(manifest(2, 1), False)]


def test_a_failing_buddy_is_replaced_until_nobody_is_left_and_one_copy_has_to_do() -> None:
    s = saver([A, B], [A, B, C])
    s.save(manifest(1, 2), best=False)
    s.requests.clear()
    s.kept(B, 1, "the disk is full")
    assert [(r.source, r.node) for r in s.requests] == [(A, C)]
    s.kept(C, 3, "the disk is full")
    assert s.next_outcome() is None
    s.kept(A, 2, "")
    text = "only one copy, on node a, and none on node c: the disk is full"
    assert s.next_outcome() == Complete(manifest(1, 2), False, (text,))
    assert not s.busy


def test_no_checkpoint_counts_before_the_data_has_its_second_copy() -> None:
    s = saver([A], [A, B])
    s.keep_data(A, (BlobId("rows"),))
    s.save(manifest(1, 1), best=False)
    s.kept(B, 2, "")
    assert s.next_outcome() is None
    s.kept(B, 1, "")
    assert s.next_outcome() == Complete(manifest(1, 1), False)


def test_a_silent_buddy_is_replaced_and_has_longer_for_a_large_copy() -> None:
    s = saver([A], [A, B, C])
    assert s.get_timer() is None
    s.now = 5.0
    s.keep_data(A, (BlobId("rows"),))
    s.save(manifest(1, 1), best=False)
    due = s.get_timer()
    assert due is not None
    assert 5.0 + KEEP_S < due < 5.0 + KEEP_S + 1.0  # of the small part
    s.now = due - 0.1
    s.handle_timer()
    assert [r.node for r in s.requests] == [B, B]
    s.now = due
    s.handle_timer()
    assert [(r.node, r.blobs[0]) for r in s.requests][2:] == [(C, "part-1-0")]
    assert s.get_timer() == 5.0 + KEEP_S + CHUNK_BYTES / KEEP_BYTES_PER_S


def test_a_lost_buddy_is_replaced() -> None:
    members = {A: "a", B: "b", C: "c"}
    s = Saver(members, BlobId("spec"), 0, 0)
    s.nodes = [A]
    s.keep_data(A, (BlobId("rows"),))
    lost = s.requests.popleft().node
    del members[lost]
    s.member_failed(lost)
    assert s.requests.popleft().node not in (A, lost)
    s.kept(next(n for n in (B, C) if n != lost), 2, "no room")
    assert isinstance(s.next_outcome(), DataAlone)


@pytest.mark.parametrize(("start", "term"), [(1, 7), (2, 6)])
def test_answers_to_an_earlier_start_or_term_are_none_to_this_one(start: int, term: int) -> None:
    earlier = Saver({A: "a", B: "b"}, BlobId("spec"), start, term)
    earlier.nodes = [A]
    earlier.save(manifest(1, 1), best=False)
    s = Saver({A: "a", B: "b"}, BlobId("spec"), 2, 7)
    s.nodes = [A]
    s.save(manifest(1, 1), best=False)
    s.kept(B, earlier.requests[0].request, "")
    assert s.busy
    s.kept(B, s.requests[0].request, "")
    assert s.next_outcome() == Complete(manifest(1, 1), False)


def test_a_part_that_a_lost_node_alone_has_makes_no_checkpoint() -> None:
    s = saver([A, B], [A, B, C])
    s.save(manifest(1, 2), best=False)
    s.save(manifest(2, 2), best=False)
    del s._members[A]
    s.kept(B, 1, "its source is gone")
    s.kept(C, s.requests[-1].request, "its source is gone")
    found = s.next_outcome()
    assert isinstance(found, Torn)
    assert found.manifest == manifest(1, 2)
    assert "node a is lost" in found.error
    s.kept(A, 2, "")  # late, and nobody waits for it
    assert s.next_outcome() is None
    s.kept(B, 3, "")
    s.kept(A, 4, "")
    assert s.next_outcome() == Complete(manifest(2, 2), False)
    assert not s.busy


def test_parts_that_one_node_wrote_are_copied_from_it_and_another_may_have_written_none() -> None:
    s = saver([A, B, C], [A, B, C])
    s.save(manifest(1, 3), best=False, writers=(0, 0, 2))
    assert [(r.source, r.node) for r in s.requests] == [(A, B), (A, B), (C, A)]
    assert s.writers == ((0, 0, 2),)
