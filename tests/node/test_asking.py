"""Questions about jobs between nodes: who answers, in whose words, and who is to be asked again elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.errors import NotFoundError, UsageError
from p2pnn.node import asking as module
from p2pnn.node.asking import AskAgain, Asking
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import B, C, post, until

pytestmark = pytest.mark.asyncio


async def cancel(node: NodeId, message: wire.Ask) -> wire.Answered:
    if message.job == "moved-1":
        raise AskAgain("another node coordinates now")
    if message.job != "toy-1":
        raise NotFoundError(f"no job {message.job!r}")
    return wire.Answered(message.request, "cancelled")


async def test_an_error_is_in_the_words_of_the_node_that_was_asked_and_others_are_not_heard() -> None:
    here, outside = post()
    asking = Asking(here)
    question = asyncio.ensure_future(asking.inquire(B, "b", wire.Ask(0, "toy-1", "cancel")))
    await until(lambda: outside.of(wire.Ask, B))
    asking.receive(C, wire.Answered(1, "cancelled"))
    asking.receive(B, wire.Answered(2, "cancelled"))
    asking.receive(B, wire.Answered(1, "", "a job that is done cannot cancel"))
    with pytest.raises(UsageError, match="a job that is done cannot cancel"):
        await question
    asking.receive(B, wire.Answered(1, "late"))


async def test_what_is_asked_here_is_carried_out_or_refused_in_one_sentence() -> None:
    here, outside = post()
    asking = Asking(here)
    asking.offer("cancel", cancel)
    asked = (("toy-1", "cancel"), ("toy-2", "cancel"), ("moved-1", "cancel"), ("toy-1", "explode"))
    for number, (job, verb) in enumerate(asked):
        asking.receive(B, wire.Ask(number, job, verb))
    await until(lambda: len(outside.sent) == 4)
    first, second, third, fourth = sorted(outside.of(wire.Answered, B), key=lambda answer: answer.request)
    assert first == wire.Answered(0, "cancelled")
    assert second == wire.Answered(1, "", "no job 'toy-2'")
    assert third == wire.Answered(2, "again", "another node coordinates now")
    assert "cannot explode a job for a peer" in fourth.error


async def test_who_is_silent_is_named_and_who_is_lost_or_replaced_is_not_the_one_to_ask() -> None:
    here, outside = post()
    asking = Asking(here)
    question = wire.Ask(0, "toy-1", "pause")
    with pytest.raises(UsageError, match="node b did not answer within 0 s") as silent:
        await asking.inquire(B, "b", question, 0.01)
    assert not isinstance(silent.value, AskAgain)
    waiting = asyncio.ensure_future(asking.inquire(B, "b", question))
    await until(lambda: len(outside.of(wire.Ask, B)) == 2)
    asking.member_lost(C, "connection reset")
    asking.member_lost(B, "connection reset")
    with pytest.raises(AskAgain, match="node b was lost before it answered: connection reset"):
        await waiting
    waiting = asyncio.ensure_future(asking.inquire(B, "b", question))
    await until(lambda: len(outside.of(wire.Ask, B)) == 3)
    asking.receive(B, wire.Answered(3, "again", "it does not coordinate any more"))
    with pytest.raises(AskAgain, match="it does not coordinate any more"):
        await waiting


async def test_what_is_offered_is_answered_and_its_errors_are_told_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OFFERED_MAX", 2)
    here, outside = post()
    asking, gate = Asking(here), asyncio.Event()

    async def answer(node: NodeId, message: wire.Ask) -> wire.Traced:
        await gate.wait()
        if message.job != "toy-1":
            raise NotFoundError("nothing is known of it")
        return wire.Traced(message.request, 5, b"part")

    asking.offer("trace", answer)
    for number, job in enumerate(("toy-1", "toy-2", "toy-1")):
        asking.receive(B, wire.Ask(number, job, "trace"))
    assert outside.of(wire.Answered, B) == [
        wire.Answered(2, "", "it answers enough questions already; ask again"),
    ]
    gate.set()
    await until(lambda: len(outside.sent) == 3)
    assert outside.of(wire.Traced, B) == [wire.Traced(0, 5, b"part")]
    assert outside.of(wire.Answered, B)[1] == wire.Answered(1, "", "nothing is known of it")
    asking.receive(B, wire.Ask(3, "toy-1", "trace"))
    await until(lambda: len(outside.sent) == 4)
    await asking.close()


async def test_an_answer_of_another_kind_is_given_as_it_is() -> None:
    here, outside = post()
    asking = Asking(here)
    question = asyncio.ensure_future(asking.inquire(B, "b", wire.Ask(0, "toy-1", "clock")))
    await until(lambda: outside.of(wire.Ask, B))
    asking.receive(B, wire.Traced(1, 77))
    assert await question == wire.Traced(1, 77)


async def test_who_waits_when_the_node_stops_is_told() -> None:
    here, outside = post()
    asking = Asking(here)
    waiting = asyncio.ensure_future(asking.inquire(B, "b", wire.Ask(0, "toy-1", "cancel")))
    await until(lambda: outside.of(wire.Ask, B))
    await asking.close()
    with pytest.raises(UsageError, match="node a stops") as stopped:
        await waiting
    assert not isinstance(stopped.value, AskAgain), "nobody is asked any more"
