"""One start of one job on this node: prepare it, then carry tensors and messages between the executor and the peers.

What the executor has sent leaves from its place in the arena, what comes is received into it, and both are recorded
(`node.recording`), as is what the executor itself does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from p2pnn.data.chunks import HEADER_BYTES
from p2pnn.errors import P2pnnError, PeerGone, StorageError
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.part_log import PartLog, PartState
from p2pnn.job.plan import Plan
from p2pnn.job.recovery import Loss
from p2pnn.job.segment import Transfer, transfers
from p2pnn.job.spans import RING_BYTES
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.executor import Executor
from p2pnn.node.links import Post
from p2pnn.node.recording import Recording, clock
from p2pnn.node.room import Room, check, divide
from p2pnn.node.snapshots import Own, Snapshots
from p2pnn.node.specs import SPEC_BYTES_MAX, blobs_read_by, decode_spec
from p2pnn.node.tasks import Tasks, in_thread, saying_so
from p2pnn.node.traces import Traces
from p2pnn.train.cuts import COUNTER_BYTES
from p2pnn.train.gate import Gate
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.place")

LINK_GRACE_S: Final = 2.0
"""How long the coordinator has to notice a dead peer before a node that misses it fails the job for a broken link."""

_commands = msgspec.msgpack.Decoder(list[script.Command])


class Part:
    """One start of one job on this node: prepare, then carry between the executor and the peers until `end`."""

    def __init__(
        self,
        coordinator: NodeId,
        message: wire.Prepare,
        post: Post,
        blobs: BlobExchange,
        traces: Traces,
        snapshots: Snapshots,
    ) -> None:
        self._coordinator, self._term = coordinator, message.term
        self._message = message
        self._post = post
        self._blobs = blobs
        self._traces = traces
        self._snapshots = snapshots
        self._own: Own | None = None
        self._recording: Recording | None = None
        self._nodes = [NodeId(n) for n in message.nodes]
        self._executor: Executor | None = None
        self._gate: Gate | None = None
        self._transfers: list[Transfer] = []
        self._names: dict[NodeId, str] = {}
        self._held: deque[commands.ToExecutor] | None = None
        self._log = PartLog()
        self._running = False
        self._failure = ""
        self._over = False
        self._place: Callable[[int, int], tuple[int, int]]
        self._room: Room
        self._tasks = Tasks(lambda error: self._fail(f"a fault in this program: {error!r}"))
        self._tasks.spawn(self._prepare())

    @property
    def pid(self) -> int | None:
        return self._executor.pid if self._executor else None

    def is_about(self, job: str, generation: int) -> bool:
        return job == self._message.job and generation == self._message.generation

    def receive(self, node: NodeId, message: wire.Message) -> None:
        """A command of the coordinator, or what another node of the plan tells the executor here."""
        executor = self._executor
        if executor is None:
            return
        match message:
            case wire.Command():
                self._obey(executor, message)
            case wire.Retired() if self._is_index(node, message.index):
                executor.send(commands.PeerRetired(message.index, message.count))
            case wire.Squares() if self._is_index(node, message.index):
                executor.send(commands.PeerSquares(message.index, message.step, list(message.squares)))

    def adopt(self, coordinator: NodeId, term: int, record: bytes) -> None:
        """Another node coordinates from now on, or the same in another term: tell it how far this part is, and the job's record
        as it is known here. What was reported in an earlier term is part of that."""
        self._coordinator, self._term = coordinator, term
        if self._running and not self._over:
            state = self._log.tell(record)
        else:
            text = self._failure or ("it is through" if self._running else "it is not prepared yet")
            state = PartState("ended" if self._over else "preparing", text=text)
        self._tasks.spawn(self._tell(state))

    def body_for(self, node: NodeId, message: wire.Tensor, nbytes: int) -> memoryview | None:
        if self._gate is None or self._executor is None or self._over or node not in self._nodes:
            return None
        assert self._recording is not None
        refusal = self._gate.refusal(message.transfer, message.micro_batch, self._nodes.index(node), nbytes)
        if refusal:
            log.warning("tensor refused job=%s node=%s reason=%s", message.job, node[:8], refusal)
            return None
        offset, size = self._gate.take(message.transfer, message.micro_batch)
        self._recording.begins(message.transfer, message.micro_batch)
        return self._executor.room(offset, size)

    def arrived(self, message: wire.Tensor) -> None:
        if self._executor is not None and self._recording is not None:
            self._executor.send(commands.Arrived(message.transfer, message.micro_batch))
            self._recording.received(message.transfer, message.micro_batch)

    def peer_lost(self, node: NodeId, reason: str) -> None:
        """Messages to and from the node were lost with its link, and nobody says them again: the part fails, unless the
        coordinator misses the node too and says so first."""
        if node in self._nodes:
            self._tasks.spawn(self._fail_for_link(node, reason))

    async def end(self) -> None:
        """Stop at once: the executor is killed, what was on its way is dropped."""
        self._over = True
        if self._own is not None:
            self._own.close()
        if self._executor is not None:
            self._executor.kill()  # first: a tensor that is half sent may take its time
        await self._tasks.close()
        if self._recording is not None:
            self._recording.close()
        if self._executor is not None:
            await self._executor.end()
        if self._recording is not None:
            await self._traces.end(self._recording)

    # --- preparing

    async def _prepare(self) -> None:
        message = self._message
        try:
            sources = [NodeId(n) for n in message.sources]
            await self._blobs.fetch(BlobId(message.spec), sources, size_max=SPEC_BYTES_MAX)
            spec_path = self._blobs.blobs.path(BlobId(message.spec))
            data = await asyncio.to_thread(spec_path.read_bytes)
            spec = await asyncio.to_thread(decode_spec, data)
            packed, checkpoint = await self._unpack(message.plan), await self._unpack(message.checkpoint)
            plan = msgspec.msgpack.decode(packed, type=Plan)
            manifest = msgspec.msgpack.decode(checkpoint, type=Manifest) if checkpoint else None
            self._names = {share.node: share.name for share in plan.nodes}
            check(spec, plan, self._nodes, self._message.index, self._post.node)
            # A process takes as long to start as its data to come: both at once.
            both = (self._spawn(spec, plan), self._fetch(spec, plan, manifest, sources))
            done = await asyncio.gather(*both, return_exceptions=True)
            if errors := [found for found in done if isinstance(found, BaseException)]:
                raise errors[0]
            assert isinstance(done[0], Room)
            self._begin(spec, plan, done[0], str(spec_path), packed, checkpoint)
        except (StorageError, PeerGone, OSError) as error:
            self._fail(str(error), Loss.UNREACHABLE)
        except (P2pnnError, msgspec.MsgspecError, RecursionError) as error:
            self._fail(str(error))

    async def _fetch(self, spec: JobSpec, plan: Plan, manifest: Manifest | None, sources: list[NodeId]) -> None:
        needed = {b: HEADER_BYTES + n for b, n in blobs_read_by(spec, plan, self._message.index).items()}
        parts = {part.blob: part.size for part in manifest.parts} if manifest else {}
        unknown = dict.fromkeys(spec.initial)
        total, fetched, told = sum(needed.values()) + sum(parts.values()), 0, 0.0
        loop = asyncio.get_running_loop()

        def progress(nbytes: int) -> None:
            nonlocal fetched, told
            fetched += nbytes
            if loop.time() - told > 0.2:
                told = loop.time()
                about = (self._message.job, self._message.generation)
                self._post.send(self._coordinator, wire.Preparing(*about, fetched, max(total, fetched)))

        def alive() -> None:
            about = (self._message.job, self._message.generation)
            self._post.send(self._coordinator, wire.Preparing(*about, fetched, max(total, fetched)))

        fetching = self._blobs.fetch_all({**unknown, **needed, **parts}, sources, progress)
        await saying_so(fetching, lambda: self._blobs.pieces_received, alive)

    async def _unpack(self, data: bytes) -> bytes:
        found = await parcels.unpack(data, self._blobs, [self._coordinator])
        if self._coordinator != self._post.node:
            await asyncio.to_thread(parcels.forget, found, self._blobs.blobs)
        return found

    async def _spawn(self, spec: JobSpec, plan: Plan) -> Room:
        """Start the process."""
        room = await asyncio.to_thread(divide, spec, plan, self._message.index)
        self._executor = await Executor.start(room.nbytes, spec.threads, self._on_message, self._exited)
        return room

    def _begin(self, spec: JobSpec, plan: Plan, room: Room, spec_path: str, packed: bytes, checkpoint: bytes) -> None:
        """All is here: have the executor load it."""
        index, executor = self._message.index, self._executor
        assert executor is not None
        self._room = room
        self._place = room.tensors.place
        self._transfers = transfers(spec.graph, plan.assignment)
        self._gate = Gate(spec.graph, plan, index, room.tensors)
        about = (JobId(self._message.job), self._message.generation)
        self._recording = Recording(*about, self._coordinator, index, spec, plan)
        self._recording.watch(executor.room(room.ring, RING_BYTES))
        self._traces.begin(self._recording)
        if room.snapshots is not None:
            self._own = self._snapshots.begin(
                (*about, index),
                BlobId(self._message.spec),
                plan,
                room.snapshots,
                executor.room(room.counter, COUNTER_BYTES),
                lambda slot: executor.send(commands.Freed(slot)),
            )
        root = str(self._blobs.blobs.root)
        executor.send(commands.Prepare(spec_path, packed, index, root, checkpoint, room.ring, room.counter))

    def _obey(self, executor: Executor, message: wire.Command) -> None:
        try:
            found = _commands.decode(message.commands)
        except msgspec.MsgspecError as error:
            self._fail(f"the coordinator sent commands that cannot be read: {error}")
            return
        for command in found:
            if isinstance(command, script.Finish) or self._log.command(
                command.sequence, msgspec.msgpack.encode(command), message.oldest, message.state
            ):
                self._command(executor, command)

    def _command(self, executor: Executor, command: script.Command) -> None:
        if self._held is not None:
            self._held.append(command)
        elif isinstance(command, script.Restore):
            self._held = deque([command])
            self._tasks.spawn(self._restore(executor))
        else:
            self._over |= isinstance(command, script.Finish)
            executor.send(command)

    async def _restore(self, executor: Executor) -> None:
        """Fetch the parts before the executor is told to load them. What comes behind waits: a script has an order."""
        held = self._held
        assert held is not None
        try:
            while held:
                command = held[0]
                if isinstance(command, script.Restore):
                    await self._blobs.fetch_all(dict.fromkeys(map(BlobId, command.parts)), self._nodes)
                self._over |= isinstance(command, script.Finish)
                executor.send(held.popleft())
        except P2pnnError as error:
            self._fail(str(error), Loss.UNREACHABLE)
        self._held = None

    # --- what the executor says

    def _on_message(self, message: commands.FromExecutor) -> None:
        about = (self._message.job, self._message.generation)
        index = self._message.index
        match message:
            case commands.Send():
                self._send(message)
            case commands.Retired():
                if self._gate is not None:
                    self._gate.retired(message.count)
                    for sender in self._gate.senders:
                        self._post.send(self._nodes[sender], wire.Retired(*about, index, message.count))
            case commands.Squares():
                for node in self._nodes:
                    if node != self._post.node:
                        self._post.send(node, wire.Squares(*about, index, message.step, tuple(message.squares)))
            case commands.Prepared():
                self._running = True
                self._post.send(self._coordinator, wire.Prepared(*about, message.memory_bytes))
            case commands.Snapped():
                copied = executor.room(*self._room.slot(message.slot)) if (executor := self._executor) else None
                if self._own is not None and copied is not None:
                    self._own.snapped(message.step, message.slot, copied)
            case script.Progress() | script.Done():
                if self._own is not None and isinstance(message, script.Progress):
                    message.snapshot_s += self._own.take_seconds()
                data = msgspec.msgpack.encode(message)
                if isinstance(message, script.Progress):
                    self._log.progress(message)
                    self._report(data)
                elif len(data) <= parcels.INLINE_BYTES_MAX:
                    self._answer(message.sequence, data)
                else:
                    self._tasks.spawn(self._answer_parcel(message.sequence, data))
            case commands.Failed():
                self._fail(message.error)

    def _send(self, message: commands.Send) -> None:
        """Send a tensor; most have left when this returns, and need no task to wait for them."""
        executor, start = self._executor, clock()
        assert executor is not None
        offset, size = self._place(message.transfer, message.micro_batch)
        node = self._nodes[self._transfers[message.transfer].target]
        tensor = wire.Tensor(self._message.job, self._message.generation, message.transfer, message.micro_batch)
        body = executor.room(offset, size)
        if body is None:
            return
        try:
            rest = self._post.start_body(node, tensor, body, 1)
        except PeerGone as error:
            self._tasks.spawn(self._fail_for_link(node, str(error)))
            return
        if rest is None:
            self._sent(message, start)
        else:
            self._tasks.spawn(self._send_rest(rest, node, message, start))

    async def _send_rest(
        self, rest: Coroutine[Any, Any, None], node: NodeId, message: commands.Send, start: float
    ) -> None:
        try:
            await rest
        except PeerGone as error:
            await self._fail_for_link(node, str(error))
        else:
            self._sent(message, start)

    def _sent(self, message: commands.Send, start: float) -> None:
        """The tensor's memory is free: tell the executor."""
        assert self._executor is not None
        assert self._recording is not None
        self._executor.send(commands.Sent(message.transfer, message.micro_batch))
        self._recording.sent(message.transfer, message.micro_batch, start)

    async def _fail_for_link(self, node: NodeId, reason: str) -> None:
        """Where the peer is dead the coordinator says so by itself, and better; this is for a broken link between two."""
        await asyncio.sleep(LINK_GRACE_S)
        self._fail(f"its link to node {self._names.get(node, node[:8])} broke: {reason}", Loss.UNREACHABLE, node)

    async def _answer_parcel(self, number: int, data: bytes) -> None:
        try:
            self._answer(number, await in_thread(parcels.pack, data, self._blobs.blobs))
        except StorageError as error:
            self._fail(str(error))

    def _answer(self, number: int, packed: bytes) -> None:
        self._log.answered(number, packed)
        self._report(packed)

    async def _tell(self, state: PartState) -> None:
        about, coordinator = (self._message.job, self._message.generation), self._coordinator
        try:
            packed = await in_thread(parcels.pack, msgspec.msgpack.encode(state), self._blobs.blobs)
        except StorageError as error:
            packed = msgspec.msgpack.encode(PartState("ended", text=str(error)))
        self._post.send(coordinator, wire.Adopted(*about, packed))

    def _report(self, packed: bytes) -> None:
        about = (self._message.job, self._message.generation)
        self._post.send(self._coordinator, wire.Report(*about, packed, self._term))

    def _exited(self, reason: str) -> None:
        """The executor is gone; after Finish that is as it should be."""
        if not self._over:
            self._fail(reason, Loss.KILLED)

    def _fail(self, text: str, kind: Loss = Loss.FINAL, peer: str = "") -> None:
        """Tell the coordinator, once; it releases the place."""
        if self._over:
            return
        self._over, self._failure = True, text
        log.warning("part failed job=%s reason=%s", self._message.job, text)
        self._post.send(
            self._coordinator, wire.JobFailed(self._message.job, self._message.generation, text, kind, peer)
        )

    def _is_index(self, node: NodeId, index: int) -> bool:
        return 0 <= index < len(self._nodes) and self._nodes[index] == node
