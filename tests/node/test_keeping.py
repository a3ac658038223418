"""Blobs that a majority of the voters holds before the charter names them, or one node before another leaves."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.node import keeping as module
from p2pnn.node.keeping import FIRST_REQUEST, Keeping, NotKept
from p2pnn.types import BlobId, NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import DEADLINE_S, JOB, NAMES, A, B, C, post, until

pytestmark = pytest.mark.asyncio

D, E = NodeId("d" * 32), NodeId("e" * 32)
BLOBS = [BlobId(f"{n:064x}") for n in range(3)]


class Bench:
    """Node A has the blobs; the test answers for the others."""

    def __init__(self, *voters: NodeId, reachable: tuple[NodeId, ...] = (A, B, C, D, E)) -> None:
        self.post, self.outside = post(A)
        NAMES.setdefault(D, "d")
        NAMES.setdefault(E, "e")
        self.outside.peers = set(reachable)
        self.keeping = Keeping(self.post, lambda: voters)

    def keep(self, blobs: list[BlobId] = BLOBS) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.keeping.on_voters(JOB, blobs))

    def keep_on(self, node: NodeId) -> asyncio.Task[None]:
        return asyncio.ensure_future(asyncio.wait_for(self.keeping.on_node(JOB, node, tuple(BLOBS)), DEADLINE_S))

    def answer(self, node: NodeId, error: str = "", *, source: NodeId | None = None) -> bool:
        question = self.outside.of(wire.Keep, node)[-1]
        return self.keeping.kept(source or node, wire.Kept(JOB, question.request, error))


async def test_one_voter_that_has_them_is_enough() -> None:
    bench = Bench(A)
    await bench.keep()
    assert bench.outside.sent == []


async def test_a_majority_is_enough_and_this_node_counts_where_it_votes() -> None:
    bench = Bench(A, B, C)
    keeping = bench.keep()
    await until(lambda: len(bench.outside.of(wire.Keep)) == 2)
    [question] = bench.outside.of(wire.Keep, B)
    assert (question.job, question.blobs, question.source) == (JOB, tuple(BLOBS), A)
    assert question.request >= FIRST_REQUEST
    assert bench.answer(B)
    await keeping
    assert bench.answer(C), "the last answer comes late, and is none to a checkpoint's copy"


async def test_where_this_node_does_not_vote_a_majority_of_the_others_is_needed() -> None:
    bench = Bench(B, C, D)
    keeping = bench.keep()
    await until(lambda: len(bench.outside.of(wire.Keep)) == 3)
    bench.answer(B)
    await asyncio.sleep(0)
    assert not keeping.done()
    bench.answer(D)
    await keeping


async def test_a_voter_that_cannot_is_named_once_too_few_are_left() -> None:
    bench = Bench(A, B, C, D, E, reachable=(A, B, C, D))
    keeping = bench.keep()
    await until(lambda: len(bench.outside.of(wire.Keep)) == 3)
    bench.answer(B, "the disk is full")
    bench.answer(C)
    await asyncio.sleep(0)
    assert not keeping.done()
    bench.keeping.member_lost(D)
    with pytest.raises(NotKept) as failed:
        await keeping
    for words in ("of the cluster's 5 voters", "node b: the disk is full", "it is gone", "it is not connected"):
        assert words in str(failed.value)


async def test_who_does_not_answer_in_time_has_not_kept_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    with pytest.raises(NotKept, match="not all have answered within"):
        await Bench(A, B, C).keep()


async def test_answers_of_others_do_not_count_and_those_to_checkpoints_are_left_to_them() -> None:
    bench = Bench(A, B, C)
    keeping = bench.keep()
    await until(lambda: len(bench.outside.of(wire.Keep)) == 2)
    assert bench.answer(B, source=D)
    assert not bench.keeping.kept(B, wire.Kept(JOB, 5))
    await asyncio.sleep(0)
    assert not keeping.done()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert bench.keeping._asked == {}, "who went away is not waited for"


async def test_many_blobs_are_asked_for_in_several_messages_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BLOBS_MAX", 2)
    bench = Bench(A, B)
    keeping = bench.keep([*BLOBS, BLOBS[0]])
    for count in (1, 2):
        await until(lambda count=count: len(bench.outside.of(wire.Keep)) == count)
        bench.answer(B)
    await keeping
    assert [question.blobs for question in bench.outside.of(wire.Keep)] == [tuple(BLOBS[:2]), (BLOBS[2],)]


async def test_one_node_is_asked_and_what_it_says_counts() -> None:
    bench = Bench(A)
    keeping = bench.keep_on(B)
    await until(lambda: bench.outside.of(wire.Keep))
    [(node, question)] = bench.outside.sent
    assert (node, question) == (B, wire.Keep(JOB, FIRST_REQUEST, tuple(BLOBS), A))
    assert bench.answer(B, source=C), "another node's word is none of B"
    await asyncio.sleep(0)
    assert not keeping.done()
    assert bench.answer(B)
    await keeping
    assert bench.keeping._asked == {}


@pytest.mark.parametrize("how", ["full", "lost", "away"])
async def test_one_node_that_cannot_is_named_with_the_reason(how: str) -> None:
    bench = Bench(A, reachable=(A, C) if how == "away" else (A, B, C))
    keeping = bench.keep_on(B)
    if how != "away":
        await until(lambda: bench.outside.of(wire.Keep))
    if how == "full":
        bench.answer(B, "the disk is full")
    elif how == "lost":
        bench.keeping.member_lost(C)
        bench.keeping.member_lost(B)
    reason = {"full": "node b: the disk is full", "lost": "node b: it is gone", "away": "it is not connected"}[how]
    with pytest.raises(NotKept, match=f"{reason}$"):
        await keeping
    assert bench.keeping._asked == {}


async def test_who_no_longer_waits_for_one_node_is_forgotten_and_a_late_answer_is_taken() -> None:
    bench = Bench(A)
    keeping, other = bench.keep_on(B), bench.keep_on(C)
    await until(lambda: len(bench.outside.of(wire.Keep)) == 2)
    keeping.cancel()
    await asyncio.wait([keeping])
    assert [node for node, _ in bench.keeping._asked.values()] == [C]
    assert bench.answer(B), "it belongs to no checkpoint"
    bench.answer(C)
    await other
