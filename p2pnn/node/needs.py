"""What a part needs before its executors can load it: spec, plan and checkpoint, and the blobs that these name."""

from __future__ import annotations

import asyncio

import msgspec

from p2pnn.data.chunks import HEADER_BYTES
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.links import Post
from p2pnn.node.specs import SPEC_BYTES_MAX, blobs_read_by, decode_spec
from p2pnn.node.tasks import saying_so
from p2pnn.types import BlobId, NodeId
from p2pnn.wire import messages as wire

TOLD_S = 0.2
"""From one word to the coordinator to the next, while something comes."""


class Needs:
    """Of one Prepare: `read`, then `fetch`. packed, checkpoint: plan and manifest as executors get them, unpacked of parcels."""

    spec: JobSpec
    plan: Plan
    spec_path: str
    packed: bytes
    checkpoint: bytes

    def __init__(self, message: wire.Prepare, coordinator: NodeId, blobs: BlobExchange, post: Post) -> None:
        self._message = message
        self._coordinator = coordinator
        self._blobs = blobs
        self._post = post
        self._sources = [NodeId(n) for n in message.sources]
        self._fetched = self._total = 0
        self._told = 0.0

    async def read(self) -> tuple[JobSpec, Plan]:
        """Raises StorageError and PeerGone for what cannot be had, ModelError, UsageError and msgspec.MsgspecError for what is
        none."""
        message, blobs = self._message, self._blobs
        await blobs.fetch(BlobId(message.spec), self._sources, size_max=SPEC_BYTES_MAX)
        path = blobs.blobs.path(BlobId(message.spec))
        data = await asyncio.to_thread(path.read_bytes)
        self.spec, self.spec_path = await asyncio.to_thread(decode_spec, data), str(path)
        self.packed, self.checkpoint = await self._unpack(message.plan), await self._unpack(message.checkpoint)
        self.plan = msgspec.msgpack.decode(self.packed, type=Plan)
        self._manifest = msgspec.msgpack.decode(self.checkpoint, type=Manifest) if self.checkpoint else None
        return self.spec, self.plan

    async def fetch(self) -> None:
        """All blobs that this node reads; the coordinator is told how far it is. Raises StorageError, PeerGone."""
        read = blobs_read_by(self.spec, self.plan, self._message.index)
        needed = {blob: HEADER_BYTES + nbytes for blob, nbytes in read.items()}
        parts = {part.blob: part.size for part in self._manifest.parts} if self._manifest else {}
        unknown = dict.fromkeys(self.spec.initial)
        self._total = sum(needed.values()) + sum(parts.values())
        fetching = self._blobs.fetch_all({**unknown, **needed, **parts}, self._sources, self._progress)
        await saying_so(fetching, lambda: self._blobs.pieces_received, self._tell)

    async def _unpack(self, data: bytes) -> bytes:
        found = await parcels.unpack(data, self._blobs, [self._coordinator])
        if self._coordinator != self._post.node:
            await asyncio.to_thread(parcels.forget, found, self._blobs.blobs)
        return found

    def _progress(self, nbytes: int) -> None:
        self._fetched += nbytes
        now = asyncio.get_running_loop().time()
        if now - self._told > TOLD_S:
            self._told = now
            self._tell()

    def _tell(self) -> None:
        about = (self._message.job, self._message.generation)
        total = max(self._total, self._fetched)
        self._post.send(self._coordinator, wire.Preparing(*about, self._fetched, total))
