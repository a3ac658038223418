"""One start of one job on this node: its executors from their beginning to their end, and what passes between them and the
coordinator: the script's commands, and what answers them.

What passes between executors is in `node.exchange`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import Final

import msgspec

from p2pnn.errors import CheckpointError, P2pnnError, PeerGone, StorageError
from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.answers import of_node
from p2pnn.job.part_log import PartLog, PartState
from p2pnn.job.plan import Plan
from p2pnn.job.recovery import Loss
from p2pnn.job.spans import RING_BYTES
from p2pnn.job.spec import JobSpec
from p2pnn.node import parcels
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.company import Company
from p2pnn.node.exchange import Exchange
from p2pnn.node.executor import Executor
from p2pnn.node.links import Post
from p2pnn.node.needs import Needs
from p2pnn.node.recording import Recording
from p2pnn.node.roles import Roles
from p2pnn.node.room import Room, check, divide
from p2pnn.node.snapshots import Own, Snapshots
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.node.traces import Traces
from p2pnn.ps.layout import ServerLayout, server_layout
from p2pnn.train.cuts import COUNTER_BYTES
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.place")

COMPUTE: Final = "compute"
SERVE: Final = "serve"
"""Roles of executors (`executor.commands.Prepare`)."""

_commands = msgspec.msgpack.Decoder(list[script.Command])


class Part:
    """One start of one job on this node: prepare, then carry between the executors and the peers until `end`.

    A node of a data-parallel plan may compute, serve shards, or both: each by an executor of its own. Both get the script's
    commands; what they answer to one is one answer.
    """

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
        self._about = (message.job, message.generation)
        self._post = post
        self._blobs = blobs
        self._traces = traces
        self._snapshots = snapshots
        self._own: Own | None = None
        self._recording: Recording | None = None
        self._nodes = [NodeId(n) for n in message.nodes]
        self._names: dict[NodeId, str] = {}
        self._executors: dict[str, Executor] = {}
        self._exchange = Exchange()
        self._roles = Roles()
        self._prepared: dict[str, int] = {}
        self._answers: dict[int, list[script.Done]] = {}
        self._step = 0
        self._room: Room
        self._served: ServerLayout
        self._held: deque[commands.ToExecutor] | None = None
        self._log = PartLog()
        self._running = self._asks = False
        self._failure = ""
        self._over = False
        self._tasks = Tasks(lambda error: self._fail(f"a fault in this program: {error!r}"))
        self._tasks.spawn(self._prepare())

    @property
    def pids(self) -> dict[str, int]:
        """Of its executors, by role."""
        return {role: executor.pid for role, executor in self._executors.items()}

    def is_about(self, job: str, generation: int) -> bool:
        return (job, generation) == self._about

    def receive(self, node: NodeId, message: wire.Message) -> None:
        """A command of the coordinator, or what another node of the plan tells the executors here."""
        match message:
            case wire.Command():
                if self._executors:
                    self._obey(message)
            case wire.Assigned():
                self._assigned(message.assignment)
            case _:
                self._exchange.receive(node, message)

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

    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None:
        if self._over:
            return None
        return self._exchange.body_for(node, message, nbytes)

    def arrived(self, node: NodeId, message: wire.Message) -> None:
        """A body lies whole in the place that was given for it."""
        self._exchange.arrived(node, message)

    def link_lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        self._exchange.lost(node)

    def peer_lost(self, node: NodeId, reason: str) -> None:
        """Messages to and from the node were lost with its link, and nobody says them again: the part fails, unless the
        coordinator says before that the start is over, or that it goes on without the node."""
        if node in self._nodes and self._roles.doubts(node):
            self._tasks.spawn(self._fail_for_link(node, reason))

    async def end(self) -> None:
        """Stop at once: the executors are killed, what was on its way is dropped."""
        self._over = True
        if self._own is not None:
            self._own.close()
        for executor in self._executors.values():
            executor.kill()  # first: a tensor that is half sent may take its time
        await self._tasks.close()
        if self._recording is not None:
            self._recording.close()
        await asyncio.gather(*(executor.end() for executor in self._executors.values()))
        if self._recording is not None:
            await self._traces.end(self._recording)

    # --- preparing

    async def _prepare(self) -> None:
        try:
            needs = Needs(self._message, self._coordinator, self._blobs, self._post)
            spec, plan = await needs.read()
            self._names = {share.node: share.name for share in plan.nodes}
            check(spec, plan, self._nodes, self._message.index, self._post.node)
            self._roles.begin(plan, self._message.generation, self._message.index, spec)
            # A process takes as long to start as its data to come: both at once.
            both = (self._spawn(spec, plan), needs.fetch())
            done = await asyncio.gather(*both, return_exceptions=True)
            if errors := [found for found in done if isinstance(found, BaseException)]:
                raise errors[0]
            self._begin(needs)
        except (StorageError, PeerGone, OSError) as error:
            self._fail(str(error), Loss.UNREACHABLE)
        except (P2pnnError, msgspec.MsgspecError, RecursionError) as error:
            self._fail(str(error))

    async def _spawn(self, spec: JobSpec, plan: Plan) -> None:
        """Start the processes."""
        index = self._message.index
        if plan.worker_of(index) >= 0:
            self._room = await asyncio.to_thread(divide, spec, plan, index)
            self._executors[COMPUTE] = await self._start(COMPUTE, self._room.nbytes, spec.threads)
        if plan.served_by(index):
            self._served = await asyncio.to_thread(server_layout, spec, plan, index)
            self._executors[SERVE] = await self._start(SERVE, self._served.arena_bytes + RING_BYTES, spec.threads)

    async def _start(self, role: str, arena_bytes: int, threads: int) -> Executor:
        return await Executor.start(arena_bytes, threads, partial(self._on_message, role), partial(self._exited, role))

    def _begin(self, needs: Needs) -> None:
        """All is here: have the executors load it."""
        index, spec, plan = self._message.index, needs.spec, needs.plan
        about = (JobId(self._message.job), self._message.generation)
        recording = self._recording = Recording(*about, self._coordinator, index, spec, plan)
        company = Company(
            self._about, index, self._nodes, self._names, self._post, self, self._tasks.spawn, self.peer_lost
        )
        root = str(self._blobs.blobs.root)
        prepare = partial(commands.Prepare, needs.spec_path, needs.packed, index, root, needs.checkpoint)
        prepare = partial(prepare, job=self._message.job, generation=self._message.generation)
        if (executor := self._executors.get(COMPUTE)) is not None:
            room = self._room
            self._exchange.computes(spec, plan, room, company, executor, recording)
            if room.snapshots is not None:
                self._own = self._snapshots.begin(
                    (*about, index),
                    BlobId(self._message.spec),
                    plan,
                    room.snapshots,
                    executor.room(room.counter, COUNTER_BYTES),
                    lambda slot: executor.send(commands.Freed(slot)),
                )
            recording.watch(executor.room(room.ring, RING_BYTES))
            executor.send(prepare(room.ring, room.counter, COMPUTE, room.landings))
        if (server := self._executors.get(SERVE)) is not None:
            ring = self._served.arena_bytes
            self._exchange.serves(plan, self._served, company, server, recording)
            recording.watch_server(server.room(ring, RING_BYTES))
            server.send(prepare(ring, role=SERVE))
        self._traces.begin(recording)

    # --- the script

    def _obey(self, message: wire.Command) -> None:
        try:
            found = _commands.decode(message.commands)
        except msgspec.MsgspecError as error:
            self._fail(f"the coordinator sent commands that cannot be read: {error}")
            return
        for command in found:
            if isinstance(command, script.Finish) or self._log.command(
                command.sequence, msgspec.msgpack.encode(command), message.oldest, message.state
            ):
                self._command(command)

    def _command(self, command: script.Command) -> None:
        if self._held is not None:
            self._held.append(command)
        elif isinstance(command, script.Restore):
            self._held = deque([command])
            self._tasks.spawn(self._restore())
        else:
            self._pass_on(command)

    def _pass_on(self, command: commands.ToExecutor) -> None:
        self._over |= isinstance(command, script.Finish)
        self._exchange.begin(self._roles.assignment)
        for executor in self._executors.values():
            executor.send(command)

    async def _restore(self) -> None:
        """Fetch the parts before the executors are told to load them. What comes behind waits: a script has an order."""
        held = self._held
        assert held is not None
        try:
            while held:
                command = held[0]
                if isinstance(command, script.Restore):
                    await self._blobs.fetch_all(dict.fromkeys(map(BlobId, command.parts)), self._nodes)
                self._pass_on(held.popleft())
        except P2pnnError as error:
            self._fail(str(error), Loss.UNREACHABLE)
        self._held = None

    # --- what the executors say

    def _on_message(self, role: str, message: commands.FromExecutor) -> None:
        if self._exchange.says(message):
            pass
        elif isinstance(message, commands.ProposeConfiguration):
            wish = wire.ShardWish(*self._about, message.shard, message.configuration)
            self._post.send(self._coordinator, wish)
            self._asks = True
        elif isinstance(message, commands.Prepared):
            self._prepared[role] = message.memory_bytes
            if self._prepared.keys() == self._executors.keys():
                self._running = True
                self._post.send(self._coordinator, wire.Prepared(*self._about, sum(self._prepared.values())))
        elif isinstance(message, commands.Snapped):
            executor = self._executors[role]
            if self._own is not None and (copied := executor.room(*self._room.slot(message.slot))) is not None:
                self._own.snapped(message.step, message.slot, copied)
        elif isinstance(message, script.Progress):
            self._progress(role, message)
        elif isinstance(message, script.Done):
            self._done(message)
        elif isinstance(message, commands.Failed):
            self._fail(message.error, Loss.UNREACHABLE if message.is_lost else Loss.FINAL)

    def _progress(self, role: str, message: script.Progress) -> None:
        if self._own is not None:
            message.snapshot_s += self._own.take_seconds()
        if role == COMPUTE:
            self._step = message.step
        elif COMPUTE in self._executors:  # how far this node is, and how busy, says the one that computes
            message = script.Progress(self._step, (0.0, 0), {}, 0.0, 0.0, served=message.served)
        self._log.progress(message)
        self._report(msgspec.msgpack.encode(message))

    def _done(self, message: script.Done) -> None:
        """An executor's answer to a command; the part answers when all have."""
        found = self._answers.setdefault(message.sequence, [])
        found.append(message)
        if len(found) < len(self._executors):
            return
        del self._answers[message.sequence]
        try:
            data = msgspec.msgpack.encode(of_node(found))
        except msgspec.MsgspecError as error:
            self._fail(f"what its compute processes answered cannot be read: {error}")
            return
        if len(data) <= parcels.INLINE_BYTES_MAX:
            self._answer(message.sequence, data)
        else:
            self._tasks.spawn(self._answer_parcel(message.sequence, data))

    def _assigned(self, data: bytes) -> None:
        """The coordinator says who has which role now: executors are told what is newer, a server that asked any word."""
        try:
            if not self._running or self._over:
                return
            if not self._roles.take(data):
                if self._asks and self._roles.holds(data):
                    self._asks = False
                    self._executors[SERVE].send(commands.Assigned(data))
                return
        except CheckpointError as error:
            log.warning("not taken job=%s reason=%s", self._message.job, error)
            return
        if not self._roles.takes_part:
            self._fail("the start goes on without this node", Loss.UNREACHABLE)
            return
        self._exchange.assigned(self._roles.assignment)
        for executor in self._executors.values():
            executor.send(commands.Assigned(data))

    async def _fail_for_link(self, node: NodeId, reason: str) -> None:
        """Where the peer is dead the coordinator says so by itself, and better; this is for a broken link between two."""
        if not await self._roles.gives_up(node, lambda: self._coordinator, self._post.reachable):
            return
        self._fail(f"its link to node {self._names.get(node, node[:8])} broke: {reason}", Loss.UNREACHABLE, node)

    # --- what the coordinator is told

    async def _answer_parcel(self, number: int, data: bytes) -> None:
        try:
            self._answer(number, await in_thread(parcels.pack, data, self._blobs.blobs))
        except StorageError as error:
            self._fail(str(error))

    def _answer(self, number: int, packed: bytes) -> None:
        self._log.answered(number, packed)
        self._report(packed)

    async def _tell(self, state: PartState) -> None:
        about, coordinator = self._about, self._coordinator
        try:
            packed = await in_thread(parcels.pack, msgspec.msgpack.encode(state), self._blobs.blobs)
        except StorageError as error:
            packed = msgspec.msgpack.encode(PartState("ended", text=str(error)))
        self._post.send(coordinator, wire.Adopted(*about, packed))

    def _report(self, packed: bytes) -> None:
        self._post.send(self._coordinator, wire.Report(*self._about, packed, self._term))

    def _exited(self, role: str, reason: str) -> None:
        """An executor is gone; after Finish that is as it should be."""
        if not self._over:
            self._fail(f"{reason}, which served shards of the parameters" if role == SERVE else reason, Loss.KILLED)

    def _fail(self, text: str, kind: Loss = Loss.FINAL, peer: str = "") -> None:
        """Tell the coordinator, once; it releases the place."""
        if self._over:
            return
        self._over, self._failure = True, text
        log.warning("part failed job=%s reason=%s", self._message.job, text)
        self._post.send(self._coordinator, wire.JobFailed(*self._about, text, kind, peer))
