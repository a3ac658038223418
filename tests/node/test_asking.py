"""Asking a job's coordinator to do what a person said elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.errors import NotFoundError, UsageError
from p2pnn.node import asking as module
from p2pnn.node.asking import Asking
from p2pnn.wire import messages as wire
from tests.node.nodes import B, C, post, until

pytestmark = pytest.mark.asyncio


def carry_out(job: str, verb: str) -> str:
    if job != "toy-1":
        raise NotFoundError(f"no job {job!r}")
    return f"{verb}led"


async def test_an_error_is_in_the_words_of_the_node_that_was_asked_and_others_are_not_heard() -> None:
    here, outside = post()
    asking = Asking(here, carry_out)
    question = asyncio.ensure_future(asking.ask(B, "b", "toy-1", "cancel"))
    await until(lambda: outside.of(wire.Ask, B))
    asking.receive(C, wire.Answered(1, "cancelled"))
    asking.receive(B, wire.Answered(2, "cancelled"))
    asking.receive(B, wire.Answered(1, "", "a job that is done cannot cancel"))
    with pytest.raises(UsageError, match="a job that is done cannot cancel"):
        await question
    asking.receive(B, wire.Answered(1, "late"))


async def test_what_is_asked_here_is_carried_out_or_refused_in_one_sentence() -> None:
    here, outside = post()
    asking = Asking(here, carry_out)
    for number, (job, verb) in enumerate((("toy-1", "cancel"), ("toy-2", "cancel"), ("toy-1", "explode"))):
        asking.receive(B, wire.Ask(number, job, verb))
    first, second, third = outside.of(wire.Answered, B)
    assert first == wire.Answered(0, "cancelled")
    assert second == wire.Answered(1, "", "no job 'toy-2'")
    assert "cannot explode a job for a peer" in third.error


async def test_a_silent_coordinator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.01)
    with pytest.raises(UsageError, match="node b, which coordinates job toy-1, did not answer"):
        await Asking(post()[0], carry_out).ask(B, "b", "toy-1", "pause")


async def test_what_is_offered_is_answered_and_its_errors_are_told_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OFFERED_MAX", 2)
    here, outside = post()
    asking, gate = Asking(here, carry_out), asyncio.Event()

    async def answer(message: wire.Ask) -> wire.Traced:
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
    asking = Asking(here, carry_out)
    question = asyncio.ensure_future(asking.inquire(B, "b", "toy-1", "clock"))
    await until(lambda: outside.of(wire.Ask, B))
    asking.receive(B, wire.Traced(1, 77))
    assert await question == wire.Traced(1, 77)
