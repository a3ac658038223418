"""Having something done where the cluster is coordinated, also when that changes while one waits."""

from __future__ import annotations

import asyncio

import pytest

from p2pnn.errors import PlanError, UsageError
from p2pnn.node import coordinator as module
from p2pnn.node.asking import AGAIN, Asking
from p2pnn.node.coordinator import Coordinator, Once
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from tests.node.nodes import NAMES, A, B, C, post, until

pytestmark = pytest.mark.asyncio

QUESTION = wire.Ask(0, "toy-1", "cancel")


class Bench:
    """Node A; the test says who coordinates."""

    def __init__(self) -> None:
        self.coordinator: NodeId | None = None
        self.ready = True
        self.post, self.outside = post(A)
        self.asking = Asking(self.post)
        self.it = Coordinator(self.post, self, self.asking, lambda: NAMES, lambda: self.ready)
        self.done_here = 0

    async def here(self) -> str:
        self.done_here += 1
        return "cancelled"

    def start(self) -> asyncio.Task[str]:
        return asyncio.get_running_loop().create_task(self.it.have_done(QUESTION, self.here))

    def elect(self, node: NodeId | None) -> None:
        self.coordinator = node
        self.it.changed()

    async def asked(self, node: NodeId, count: int = 1) -> wire.Ask:
        await until(lambda: len(self.outside.of(wire.Ask, node)) == count)
        found: wire.Ask = self.outside.of(wire.Ask, node)[-1]
        return found


async def test_it_is_done_here_once_this_node_has_taken_up_everything() -> None:
    bench = Bench()
    bench.ready = False
    waiting = bench.start()
    bench.elect(A)
    await asyncio.sleep(0)
    assert bench.done_here == 0
    bench.ready = True
    assert await waiting == "cancelled"
    assert (bench.done_here, bench.outside.of(wire.Ask)) == (1, [])


async def test_another_node_is_asked_and_its_answer_told() -> None:
    bench = Bench()
    waiting = bench.start()
    bench.elect(B)
    question = await bench.asked(B)
    bench.asking.receive(B, wire.Answered(question.request, "cancelled"))
    assert await waiting == "cancelled"
    assert bench.done_here == 0


async def test_the_next_coordinator_is_asked_where_one_is_lost_or_deposed() -> None:
    bench = Bench()
    waiting = bench.start()
    bench.elect(B)
    await bench.asked(B)
    bench.coordinator = C
    bench.asking.member_lost(B, "killed")
    question = await bench.asked(C)
    bench.coordinator = A
    bench.asking.receive(C, wire.Answered(question.request, AGAIN, "it does not coordinate any more"))
    assert await waiting == "cancelled"
    assert bench.done_here == 1


async def test_a_coordinator_that_is_replaced_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUCCESSORS_MAX", 2)
    bench = Bench()
    bench.coordinator = B
    waiting = bench.start()
    for count in (1, 2):
        question = await bench.asked(B, count)
        bench.asking.receive(B, wire.Answered(question.request, AGAIN, "not me"))
    with pytest.raises(UsageError, match="replaced again and again, last because not me"):
        await waiting


async def test_who_waits_for_an_election_that_does_not_come_is_told_where_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ELECTION_S", 0.05)
    bench = Bench()
    with pytest.raises(UsageError, match=r"too few voters can be reached.*cluster show"):
        await bench.it.elected()
    bench.outside.peers.discard(B)
    bench.coordinator = B  # elected, and not connected
    with pytest.raises(UsageError, match="no coordinator was elected"):
        await bench.it.elected()


async def test_a_node_that_stops_tells_who_waits() -> None:
    bench = Bench()
    waiting = bench.start()
    await asyncio.sleep(0)
    bench.it.close()
    with pytest.raises(UsageError, match="node a is stopping"):
        await waiting


class Work:
    """What several ask for at once. begun: how often it was begun, running: how often it is under way."""

    def __init__(self) -> None:
        self.once = Once()
        self.begun = self.running = 0
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ask(self, *keys: str) -> list[asyncio.Task[str]]:
        """One asker for each key, all of which wait when this returns."""
        tasks = [asyncio.ensure_future(self.once.do(("toy-1", key), self._do)) for key in keys]
        await asyncio.sleep(0)
        return tasks

    async def _do(self) -> str:
        self.begun += 1
        self.running += 1
        try:
            return await asyncio.shield(self.result)
        finally:
            self.running -= 1


async def test_what_several_ask_for_at_once_is_done_once_and_something_else_beside_it() -> None:
    work = Work()
    askers = await work.ask("resume", "resume", "submit")
    assert work.begun == 2
    work.result.set_result("running")
    assert await asyncio.gather(*askers) == ["running"] * 3
    await asyncio.gather(*await work.ask("resume"))
    assert work.begun == 3, "what is over is done again"


async def test_all_who_asked_learn_why_it_cannot_be_done() -> None:
    work = Work()
    askers = await work.ask("resume", "resume")
    work.result.set_exception(PlanError("it does not fit"))
    found = await asyncio.gather(*askers, return_exceptions=True)
    assert [str(error) for error in found] == ["it does not fit"] * 2
    assert work.begun == 1


async def test_where_who_does_it_goes_away_the_next_asker_does_it_and_the_others_wait_for_that() -> None:
    work = Work()
    first, second, third = await work.ask("resume", "resume", "resume")
    first.cancel()
    await until(lambda: work.begun == 2)
    assert (first.cancelled(), work.running) == (True, 1)
    work.result.set_result("running")
    assert await asyncio.gather(second, third) == ["running", "running"]
    assert work.begun == 2


async def test_who_only_waits_may_go_away_and_with_the_last_asker_the_work_ends() -> None:
    work = Work()
    first, second = await work.ask("resume", "resume")
    second.cancel()
    await asyncio.wait([second])
    assert (work.running, first.done()) == (1, False)
    first.cancel()
    await asyncio.wait([first])
    assert (work.running, work.once._running) == (0, {})
