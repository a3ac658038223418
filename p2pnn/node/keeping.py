"""Blobs that the cluster must not lose: held by a majority of the voters before the charter names them, or by another node
before their only one goes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from p2pnn.errors import P2pnnError
from p2pnn.node.links import Post
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

WAIT_S: Final = 60.0
"""For a majority to hold what a job names: its parameters may be large, and a link slow."""

FIRST_REQUEST: Final = 1 << 62
"""Numbers of requests, above those of any job's checkpoints (`job.saving`)."""


class NotKept(P2pnnError):
    """A majority of the voters, or the node that was asked, could not take it."""


class Keeping:
    """voters: of the charter that holds."""

    def __init__(self, post: Post, voters: Callable[[], tuple[NodeId, ...]]) -> None:
        self._post = post
        self._voters = voters
        self._numbers = itertools.count(FIRST_REQUEST)
        self._asked: dict[int, tuple[NodeId, asyncio.Future[str]]] = {}

    async def on_voters(self, job: JobId, blobs: Iterable[BlobId]) -> None:
        """Have a majority of the voters hold these blobs, which lie in this node's store. Raises NotKept."""
        wanted = tuple(dict.fromkeys(blobs))
        for start in range(0, len(wanted), wire.BLOBS_MAX):
            await self._keep(job, wanted[start : start + wire.BLOBS_MAX])

    async def on_node(self, job: JobId, node: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have this node hold these blobs, at most `BLOBS_MAX`, which lie in this node's store. Raises NotKept with its words."""
        future = self._ask(job, node, blobs)
        try:
            if error := await future:
                raise NotKept(error)
        finally:
            self._forget([future])

    def kept(self, node: NodeId, message: wire.Kept) -> bool:
        """A voter's answer; False where the message is none to this."""
        asked = self._asked.get(message.request)
        if asked is None or asked[0] != node:
            return message.request >= FIRST_REQUEST
        if not asked[1].done():
            asked[1].set_result(f"node {self._post.name_of(node)}: {message.error}" if message.error else "")
        return True

    def member_lost(self, node: NodeId) -> None:
        for asked, future in self._asked.values():
            if asked == node and not future.done():
                future.set_result(f"node {self._post.name_of(node)}: it is gone")

    # --- how

    async def _keep(self, job: JobId, wanted: tuple[BlobId, ...]) -> None:
        voters = self._voters()
        needed = len(voters) // 2 + 1 - (self._post.node in voters)
        if needed <= 0:
            return
        futures = [self._ask(job, node, wanted) for node in voters if node != self._post.node]
        errors: list[str] = []
        try:
            async with asyncio.timeout(WAIT_S):
                for done in asyncio.as_completed(futures):
                    error = await done
                    if error:
                        errors.append(error)
                    else:
                        needed -= 1
                    if needed <= 0:
                        return
        except TimeoutError:
            errors.append(f"not all have answered within {WAIT_S:.0f} s")
        finally:
            self._forget(futures)
        raise NotKept(
            f"too few of the cluster's {len(voters)} voters could store job {job}'s specification and initial parameters "
            f"({'; '.join(errors)}); free disk space there or start missing nodes, then submit again"
        )

    def _forget(self, futures: Collection[asyncio.Future[str]]) -> None:
        self._asked = {number: asked for number, asked in self._asked.items() if asked[1] not in futures}

    def _ask(self, job: JobId, node: NodeId, blobs: tuple[BlobId, ...]) -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if not self._post.reachable(node):
            future.set_result(f"node {self._post.name_of(node)}: it is not connected")
            return future
        number = next(self._numbers)
        self._asked[number] = (node, future)
        self._post.send(node, wire.Keep(job, number, blobs, self._post.node))
        return future
