"""Blobs between peers: fetching what this node lacks, serving what it has.

A blob is asked for in pieces, a few at a time; a piece is received into its own small buffer and written by a thread, so
neither memory nor the loop notices how large a blob is. A blob takes no more of the disk than its asker knows it may (half of
what is free where nobody knows), and never more than the quota. What arrives is believed only after its hash was checked,
so any peer may be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from p2pnn.data.blobs import BlobStore, BlobWriter
from p2pnn.errors import DataError, P2pnnError, PeerGone, StorageError
from p2pnn.node.links import Post, Priority
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import BlobId, NodeId
from p2pnn.wire.messages import BlobMissing, BlobPiece, BlobRequest, Keep, Kept

log = logging.getLogger("p2pnn.blobs")

PIECE_BYTES: Final = 1 << 20
PIECES_AHEAD: Final = 4
"""Pieces asked for ahead of the one that is written: hides a round trip, and bounds memory at 4 MiB per blob."""

FETCHES_MAX: Final = 4
SERVED_MAX: Final = 64
"""Requests of one peer under way here; more are answered `busy`, and its own window keeps it far below."""

KEEPS_MAX: Final = 1024
"""Keep requests of one peer under way here: a job's data in pieces, and its checkpoints. More are refused."""

PIECE_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class _Asked:
    node: NodeId
    blob: BlobId
    offset: int
    answer: asyncio.Future[tuple[int, bytearray]]
    buffer: bytearray | None = None


class _Absent(StorageError):
    """A peer that was asked has no such blob."""


class BlobExchange:
    """members gives every living peer, for blobs whose holder is not known.

    given: what people have put here since the daemon began; the job that will name it may not have been submitted yet.
    """

    def __init__(self, blobs: BlobStore, post: Post, members: Callable[[], Iterable[NodeId]]) -> None:
        self.blobs = blobs
        self.given: set[BlobId] = set()
        self._post = post
        self._members = members
        self._numbers = itertools.count(1)
        self.pieces_received = 0
        self._asked: dict[int, _Asked] = {}
        self._served: dict[NodeId, int] = {}
        self._keeping: dict[NodeId, int] = {}
        self._gate = asyncio.Semaphore(FETCHES_MAX)
        self._fetching: dict[BlobId, asyncio.Future[None]] = {}
        self._tasks = Tasks()

    async def fetch(self, blob: BlobId, sources: Iterable[NodeId] = (), *, size_max: int | None = None) -> None:
        """Have the blob here, from one of `sources` or else from any member. Raises StorageError with every reason.

        size_max: bytes that it may have; None where nobody knows.
        """
        while not await asyncio.to_thread(self.blobs.has, blob):
            running = self._fetching.get(blob)
            if running is None:
                await self._fetch_first(blob, sources, size_max)
                return
            await asyncio.wait([running])
            if not running.cancelled():  # else its asker went away, and the next one fetches
                running.result()
                return

    async def _fetch_first(self, blob: BlobId, sources: Iterable[NodeId], size_max: int | None) -> None:
        """Fetch what nobody else is fetching; whoever wants it meanwhile waits for this."""
        future = asyncio.get_running_loop().create_future()
        self._fetching[blob] = future
        try:
            async with self._gate:
                await self._fetch_from_any(blob, sources, size_max)
            future.set_result(None)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(
                error if isinstance(error, P2pnnError) else StorageError(f"blob {blob[:12]}… was not fetched")
            )
            future.exception()  # retrieved here: nobody else may be waiting
            raise
        finally:
            del self._fetching[blob]

    async def fetch_all(
        self,
        blobs: Mapping[BlobId, int | None],
        sources: Iterable[NodeId],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Fetch several, each with its `size_max`; progress gets the bytes of each that is here.

        Raises the first StorageError.
        """
        sources = list(sources)

        async def one(blob: BlobId) -> None:
            await self.fetch(blob, sources, size_max=blobs[blob])
            if progress is not None:
                progress(await asyncio.to_thread(self.blobs.size, blob))

        try:
            async with asyncio.TaskGroup() as group:
                for blob in blobs:
                    group.create_task(one(blob))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def is_anywhere(self, blob: BlobId) -> bool:
        """Whether this node or a member that can be reached has the blob; asks for one byte of it."""
        return await asyncio.to_thread(self.blobs.has, blob) or await self.is_elsewhere(blob)

    async def is_elsewhere(self, blob: BlobId, without: Collection[NodeId] = ()) -> bool:
        """Whether another member that can be reached has the blob; asks all but `without` at once for one byte of it."""
        others = [node for node in self._members() if node != self._post.node and node not in without]
        asked = [asyncio.ensure_future(self._ask(n, blob, 0, 1)) for n in others if self._post.reachable(n)]
        try:
            for answer in asyncio.as_completed(asked):  # one that hangs must not delay what another knows
                with contextlib.suppress(StorageError):
                    await answer
                    return True
            return False
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    # --- messages

    def requested(self, node: NodeId, message: BlobRequest) -> None:
        """A peer asks for a piece."""
        if self._served.get(node, 0) >= SERVED_MAX:
            self._post.send(node, BlobMissing(message.request, message.blob, "busy; ask again later"))
            return
        self._served[node] = self._served.get(node, 0) + 1
        self._tasks.spawn(self._serve(node, message))

    def body_for(self, node: NodeId, message: BlobPiece, nbytes: int) -> memoryview | None:
        """Room for a piece that was asked for, from the peer that was asked; None for any other."""
        asked = self._asked.get(message.request)
        if asked is None or asked.node != node or asked.offset != message.offset or nbytes > PIECE_BYTES:
            return None
        asked.buffer = bytearray(nbytes)
        return memoryview(asked.buffer)

    def received(self, node: NodeId, message: BlobPiece) -> None:
        self.pieces_received += 1
        asked = self._asked.get(message.request)
        if asked is not None and asked.node == node and asked.buffer is not None and not asked.answer.done():
            asked.answer.set_result((message.size, asked.buffer))

    def missing(self, node: NodeId, message: BlobMissing) -> None:
        asked = self._asked.get(message.request)
        if asked is not None and asked.node == node and not asked.answer.done():
            asked.answer.set_exception(StorageError(message.text) if message.text else _Absent("it has no such blob"))

    def keep(self, node: NodeId, message: Keep) -> None:
        """A coordinator wants blobs kept here."""
        if self._keeping.get(node, 0) >= KEEPS_MAX:
            self._post.send(node, Kept(message.job, message.request, "it keeps enough for others already"))
            return
        self._keeping[node] = self._keeping.get(node, 0) + 1
        self._tasks.spawn(self._keep(node, message))

    def peer_lost(self, node: NodeId, reason: str) -> None:
        for asked in self._asked.values():
            if asked.node == node and not asked.answer.done():
                asked.answer.set_exception(StorageError(f"its node is gone: {reason}"))

    async def close(self) -> None:
        await self._tasks.close()

    # --- how

    async def _fetch_from_any(self, blob: BlobId, sources: Iterable[NodeId], size_max: int | None) -> None:
        absent, reasons = list[str](), list[str]()
        for node in dict.fromkeys([*sources, *self._members()]):
            if node == self._post.node or not self._post.reachable(node):
                continue
            try:
                await self._fetch_from(blob, node, size_max)
                return
            except _Absent:
                absent.append(self._post.name_of(node))
            except StorageError as error:
                reasons.append(f"node {self._post.name_of(node)} did not give it: {error}")
        where = f"is on none of {', '.join(absent)}" if absent else "is not here, and no other node can be reached"
        if reasons:
            raise StorageError(
                f"blob {blob[:12]}… was not fetched; " + "; ".join([*([where] if absent else ()), *reasons])
            )
        raise StorageError(
            f"blob {blob[:12]}… {where}: start the node that has it (`p2pnn cluster show` tells who is away)"
        )

    async def _fetch_from(self, blob: BlobId, node: NodeId, size_max: int | None) -> None:
        size, first = await self._ask(node, blob, 0)
        if len(first) != min(size, PIECE_BYTES):
            raise StorageError(f"it names {size} bytes and sends {len(first)}")
        most = await asyncio.to_thread(self.blobs.room) if size_max is None else size_max
        if size > most:
            raise StorageError(f"it has {size:,} bytes; at most {most:,} are taken")
        async with writing(self.blobs, blob, size) as writer:
            await in_thread(writer.write, 0, first)
            offsets = iter(range(PIECE_BYTES, size, PIECE_BYTES))
            async with contextlib.AsyncExitStack() as stack:
                ahead = [self._ahead(stack, node, blob, offset) for offset in itertools.islice(offsets, PIECES_AHEAD)]
                while ahead:
                    offset, task = ahead.pop(0)
                    _, data = await task
                    if len(data) != min(PIECE_BYTES, size - offset):
                        raise StorageError(f"a piece at {offset} has {len(data)} bytes")
                    ahead.extend(self._ahead(stack, node, blob, o) for o in itertools.islice(offsets, 1))
                    await in_thread(writer.write, offset, data)
            await in_thread(writer.finish)

    def _ahead(
        self, stack: contextlib.AsyncExitStack, node: NodeId, blob: BlobId, offset: int
    ) -> tuple[int, asyncio.Task[tuple[int, bytearray]]]:
        task = asyncio.ensure_future(self._ask(node, blob, offset))
        stack.push_async_callback(_cancelled, task)
        return offset, task

    async def _ask(self, node: NodeId, blob: BlobId, offset: int, length: int = PIECE_BYTES) -> tuple[int, bytearray]:
        number = next(self._numbers)
        asked = _Asked(node, blob, offset, asyncio.get_running_loop().create_future())
        self._asked[number] = asked
        try:
            self._post.send(node, BlobRequest(number, blob, offset, length))
            async with asyncio.timeout(PIECE_TIMEOUT_S):
                return await asked.answer
        except TimeoutError:
            raise StorageError(f"no answer within {PIECE_TIMEOUT_S:.0f} s") from None
        finally:
            del self._asked[number]

    async def _serve(self, node: NodeId, message: BlobRequest) -> None:
        try:
            blob = BlobId(message.blob)
            size = await asyncio.to_thread(self.blobs.size, blob)
            length = min(message.length, PIECE_BYTES, max(0, size - message.offset))
            data = await asyncio.to_thread(self.blobs.read, blob, message.offset, length)
            await self._post.send_body(
                node, BlobPiece(message.request, blob, message.offset, size), memoryview(data), Priority.BLOB
            )
        except DataError as error:
            self._post.send(node, BlobMissing(message.request, message.blob, str(error)))
        except StorageError as error:  # paths of this machine tell its people something, and nobody else
            is_here = await asyncio.to_thread(self.blobs.has, BlobId(message.blob))
            if is_here:
                log.warning("blob not read blob=%s reason=%s", message.blob[:12], error)
            why = "it cannot read its copy, and its log says why" if is_here else ""
            self._post.send(node, BlobMissing(message.request, message.blob, why))
        except PeerGone as error:
            log.debug("piece not sent node=%s reason=%s", node[:8], error)
        finally:
            self._served[node] -= 1
            if not self._served[node]:
                del self._served[node]

    async def _keep(self, node: NodeId, message: Keep) -> None:
        error = ""
        try:
            await self.fetch_all(dict.fromkeys(map(BlobId, message.blobs)), [NodeId(message.source)])
        except P2pnnError as failure:
            error = str(failure)
        finally:
            self._keeping[node] -= 1
            if not self._keeping[node]:
                del self._keeping[node]
        self._post.send(node, Kept(message.job, message.request, error))


@contextlib.asynccontextmanager
async def writing(blobs: BlobStore, blob: BlobId, size: int) -> AsyncIterator[BlobWriter]:
    """A writer, opened and in the end given up by threads; write and finish with `in_thread`, so that none outlives it."""
    opened: list[BlobWriter] = []
    try:
        await in_thread(lambda: opened.append(blobs.writer(blob, size)))
        yield opened[0]
    finally:
        for writer in opened:
            await in_thread(writer.abort)


async def _cancelled(task: asyncio.Task[tuple[int, bytearray]]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
