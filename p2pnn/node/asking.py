"""Asking the node that coordinates a job to cancel or pause it, so that a person may say so at any peer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from p2pnn.errors import P2pnnError, UsageError
from p2pnn.node.links import Post
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

VERBS: Final = ("cancel", "pause")
ANSWER_TIMEOUT_S: Final = 10.0


class Asking:
    """carry_out(job, verb) does it where this node coordinates, and returns the job's state. It raises P2pnnError."""

    def __init__(self, post: Post, carry_out: Callable[[str, str], str]) -> None:
        self._post = post
        self._carry_out = carry_out
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[NodeId, asyncio.Future[wire.Answered]]] = {}

    async def ask(self, node: NodeId, name: str, job: str, verb: str) -> str:
        """Have `node`, called `name`, do it; returns the job's state. UsageError with its words, or where it is silent."""
        number = next(self._numbers)
        future: asyncio.Future[wire.Answered] = asyncio.get_running_loop().create_future()
        self._asked[number] = (node, future)
        try:
            self._post.send(node, wire.Ask(number, job, verb))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await future
        except TimeoutError:
            raise UsageError(
                f"node {name}, which coordinates job {job}, did not answer within {ANSWER_TIMEOUT_S:.0f} s; try again"
            ) from None
        finally:
            del self._asked[number]
        if answer.error:
            raise UsageError(answer.error)
        return answer.state

    def receive(self, node: NodeId, message: wire.Ask | wire.Answered) -> None:
        """What a peer asks of this node, and what one that was asked answers."""
        if isinstance(message, wire.Ask):
            self._post.send(node, self._answer(message))
            return
        asked = self._asked.get(message.request)
        if asked is not None and asked[0] == node and not asked[1].done():
            asked[1].set_result(message)

    def _answer(self, message: wire.Ask) -> wire.Answered:
        if message.verb not in VERBS:
            return wire.Answered(message.request, "", f"this p2pnn cannot {message.verb} a job for a peer; update it")
        try:
            return wire.Answered(message.request, self._carry_out(message.job, message.verb))
        except P2pnnError as error:
            return wire.Answered(message.request, "", str(error))
