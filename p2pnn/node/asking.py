"""Asking another node about a job: to cancel or pause it, because a person may say so at any peer, or for what it recorded.

Whoever answers a verb offers it here (`offer`); what nobody offers is refused with a sentence, which is how an older node
answers a question of a newer one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

from p2pnn.errors import P2pnnError, UsageError
from p2pnn.node.links import Post
from p2pnn.node.tasks import Tasks
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

VERBS: Final = ("cancel", "pause")
ANSWER_TIMEOUT_S: Final = 10.0
OFFERED_MAX: Final = 16
"""Questions being answered by what was offered; more are refused."""

Answer = Callable[[wire.Ask], Awaitable[wire.Answered | wire.Traced]]


class Asking:
    """carry_out(job, verb) does what VERBS say where this node coordinates, and returns the job's state; it raises P2pnnError."""

    def __init__(self, post: Post, carry_out: Callable[[str, str], str]) -> None:
        self._post = post
        self._carry_out = carry_out
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[NodeId, asyncio.Future[wire.Answered | wire.Traced]]] = {}
        self._offered: dict[str, Answer] = {}
        self._answering = 0
        self._tasks = Tasks()

    def offer(self, verb: str, answer: Answer) -> None:
        """Have questions with this verb answered so. It may raise P2pnnError, whose sentence is told."""
        self._offered[verb] = answer

    async def ask(self, node: NodeId, name: str, job: str, verb: str) -> str:
        """Have `node`, called `name`, do it; returns the job's state. UsageError with its words, or where it is silent."""
        answer = await self.inquire(node, f"{name}, which coordinates job {job},", job, verb)
        return answer.state if isinstance(answer, wire.Answered) else ""

    async def inquire(self, node: NodeId, name: str, job: str, verb: str) -> wire.Answered | wire.Traced:
        """Ask `node`, called `name`, and return its answer. UsageError with its words, or where it is silent."""
        number = next(self._numbers)
        future: asyncio.Future[wire.Answered | wire.Traced] = asyncio.get_running_loop().create_future()
        self._asked[number] = (node, future)
        try:
            self._post.send(node, wire.Ask(number, job, verb))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await future
        except TimeoutError:
            raise UsageError(f"node {name} did not answer within {ANSWER_TIMEOUT_S:.0f} s; try again") from None
        finally:
            del self._asked[number]
        if isinstance(answer, wire.Answered) and answer.error:
            raise UsageError(answer.error)
        return answer

    def receive(self, node: NodeId, message: wire.Ask | wire.Answered | wire.Traced) -> None:
        """What a peer asks of this node, and what one that was asked answers."""
        if not isinstance(message, wire.Ask):
            asked = self._asked.get(message.request)
            if asked is not None and asked[0] == node and not asked[1].done():
                asked[1].set_result(message)
        elif message.verb not in self._offered:
            self._post.send(node, self._carried_out(message))
        elif self._answering >= OFFERED_MAX:
            self._post.send(node, wire.Answered(message.request, "", "it answers enough questions already; ask again"))
        else:
            self._answering += 1
            self._tasks.spawn(self._answer(node, message))

    async def close(self) -> None:
        await self._tasks.close()

    def _carried_out(self, message: wire.Ask) -> wire.Answered:
        if message.verb not in VERBS:
            return wire.Answered(message.request, "", f"this p2pnn cannot {message.verb} a job for a peer; update it")
        try:
            return wire.Answered(message.request, self._carry_out(message.job, message.verb))
        except P2pnnError as error:
            return wire.Answered(message.request, "", str(error))

    async def _answer(self, node: NodeId, message: wire.Ask) -> None:
        try:
            self._post.send(node, await self._offered[message.verb](message))
        except P2pnnError as error:
            self._post.send(node, wire.Answered(message.request, "", str(error)))
        finally:
            self._answering -= 1
