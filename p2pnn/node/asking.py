"""Asking another node about a job: to submit or cancel it, because a person may say so at any peer, or for what it recorded.

Whoever answers a verb offers it here (`offer`); what nobody offers is refused with a sentence, which is how an older node
answers a question of a newer one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from p2pnn.errors import P2pnnError, PeerGone, UsageError
from p2pnn.node.links import Post
from p2pnn.node.tasks import Tasks
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

ANSWER_TIMEOUT_S: Final = 10.0
OFFERED_MAX: Final = 16
"""Questions being answered by what was offered; more are refused."""

AGAIN: Final = "again"
"""The state in an answer that says: ask the coordinator again, who is another one now."""


class AskAgain(UsageError):
    """Whoever was asked is lost or does not coordinate any more; it may have done it nevertheless."""


Answer = Callable[[NodeId, wire.Ask], Awaitable[wire.Answered | wire.Traced]]


class Asking:
    """Questions to peers, and theirs."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[NodeId, asyncio.Future[wire.Answered | wire.Traced]]] = {}
        self._offered: dict[str, Answer] = {}
        self._answering = 0
        self._tasks = Tasks()

    def offer(self, verb: str, answer: Answer) -> None:
        """Have questions with this verb answered so. It may raise P2pnnError, whose sentence is told."""
        self._offered[verb] = answer

    async def inquire(
        self, node: NodeId, name: str, question: wire.Ask, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> wire.Answered | wire.Traced:
        """Ask `node`, called `name`, and return its answer; the question's number is given here.

        UsageError with its words, or where it is silent; AskAgain where it is lost, or is not the one to ask.
        """
        number = next(self._numbers)
        future: asyncio.Future[wire.Answered | wire.Traced] = asyncio.get_running_loop().create_future()
        self._asked[number] = (node, future)
        try:
            self._post.send(node, msgspec.structs.replace(question, request=number))
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise UsageError(f"node {name} did not answer within {timeout_s:.0f} s; try again") from None
        except PeerGone as error:
            raise AskAgain(f"node {name} was lost before it answered: {error}") from None
        finally:
            del self._asked[number]
        if isinstance(answer, wire.Answered) and answer.error:
            raise AskAgain(answer.error) if answer.state == AGAIN else UsageError(answer.error)
        return answer

    def receive(self, node: NodeId, message: wire.Ask | wire.Answered | wire.Traced) -> None:
        """What a peer asks of this node, and what one that was asked answers."""
        if not isinstance(message, wire.Ask):
            asked = self._asked.get(message.request)
            if asked is not None and asked[0] == node and not asked[1].done():
                asked[1].set_result(message)
        elif message.verb not in self._offered:
            error = f"this p2pnn cannot {message.verb} a job for a peer; update it"
            self._post.send(node, wire.Answered(message.request, "", error))
        elif self._answering >= OFFERED_MAX:
            self._post.send(node, wire.Answered(message.request, "", "it answers enough questions already; ask again"))
        else:
            self._answering += 1
            self._tasks.spawn(self._answer(node, message))

    def member_lost(self, node: NodeId, reason: str) -> None:
        """What it was asked for it will not answer."""
        for asked, future in self._asked.values():
            if asked == node and not future.done():
                future.set_exception(PeerGone(reason))

    async def close(self) -> None:
        """Whoever waits for an answer learns that none will come."""
        await self._tasks.close()
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(
                    UsageError(f"node {self._post.name} stops; look at another node whether it was done")
                )

    async def _answer(self, node: NodeId, message: wire.Ask) -> None:
        try:
            self._post.send(node, await self._offered[message.verb](node, message))
        except AskAgain as error:
            self._post.send(node, wire.Answered(message.request, AGAIN, str(error)))
        except P2pnnError as error:
            self._post.send(node, wire.Answered(message.request, "", str(error)))
        finally:
            self._answering -= 1
