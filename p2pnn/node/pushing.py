"""A worker's end of its conversations with the shards: pushes leave from its arena, values are received into it.

The executor decides what is sent and when its landing places are lent; here bytes move, and `ps.gate` says which may come in.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from p2pnn.executor import commands
from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment
from p2pnn.job.plan import Plan
from p2pnn.job.spans import Kind
from p2pnn.job.spec import JobSpec
from p2pnn.node.company import Company
from p2pnn.node.executor import Executor
from p2pnn.node.links import Priority
from p2pnn.node.recording import Recording, clock
from p2pnn.ps.gate import ValuesGate
from p2pnn.ps.layout import Slots, WorkerLayout, part_sizes
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.place")

SAID: Final = (
    commands.PushPart,
    commands.FetchValues,
    commands.Lend,
    commands.SendMark,
    commands.SendRest,
    commands.WishLeases,
)
"""What an executor says to shards."""

LEASES: Final = 0
"""The shard that deals out the data."""


class Pushing:
    """Of the model replica that this node computes for: to the shards of its own layers, where it is cut over nodes."""

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        layout: WorkerLayout,
        company: Company,
        executor: Executor,
        recording: Recording,
    ) -> None:
        assert spec.data is not None
        self._worker = plan.worker_of(company.index)
        self._steps = spec.steps
        self._plan = plan
        self._homes = [home.nodes[0] for home in plan.shards]
        self._company = company
        self._executor = executor
        self._recording = recording
        self._gate = ValuesGate(plan, layout)
        shards = layout.sharding.shards
        self._bodies = {shard.index: Slots.of(part_sizes(shard, spec.data.push), 1) for shard in shards}
        self._ranks = {shard.index: sorted({part.needed for part in shard.parts}) for shard in shards}
        self._early: dict[int, commands.FetchValues] | None = {}  # by shard, until all nodes are known to be prepared
        self._receiving: dict[
            int, tuple[NodeId, int, float]
        ] = {}  # by shard: who sends the values that are coming in, their bytes, since when

    def begin(self) -> None:
        """The first command has come, so the shards are there: ask them for what the executor wanted as soon as it was ready."""
        early, self._early = self._early, None
        for message in (early or {}).values():
            self.says(message)

    def receive(self, node: NodeId, message: wire.Pushed | wire.Leased) -> None:
        """A shard's answer without values."""
        home = self._homes[message.shard] if message.shard in self._bodies else None
        if message.worker != self._worker or home is None or home != self._company.index_of(node):
            self._refuse(node, f"an answer of shard {message.shard} to worker {message.worker}")
            return
        if isinstance(message, wire.Leased):
            self._leased(node, message)
            return
        about = (message.shard, message.sequence, message.request, message.by)
        said = message.refusal, message.log_number, False
        self._executor.send(commands.Answered(*about, *said, lately=message.lately))

    def _leased(self, node: NodeId, message: wire.Leased) -> None:
        if message.shard != LEASES or any(not start < stop <= self._steps for start, stop in message.ranges):
            self._refuse(node, f"batches {message.ranges} of {self._steps}, of shard {message.shard}")
            return
        self._executor.send(
            commands.Leased(message.number, message.ranges, message.trained_below, message.again, message.never),
        )

    def body_for(self, node: NodeId, message: wire.Values, nbytes: int) -> memoryview | None:
        """The landing place whose turn it is, if it is lent; None for values that are dropped. An honest shard's answer counts
        without them."""
        refusal = self._gate.refusal(message.shard, self._company.index_of(node), nbytes, message.whole)
        if message.worker != self._worker and not refusal:
            refusal = f"values of shard {message.shard} are for worker {message.worker}"
        if refusal:
            self._refuse(node, refusal)
            return None
        is_busy = message.shard in self._receiving  # with what its last primary sent, and will not send to its end
        place = None if is_busy else self._gate.take(message.shard, nbytes)
        if place is None:
            log.debug("values dropped job=%s node=%s shard=%d", message.job, self._company.name(node), message.shard)
            self._answered(message, 0)
            return None
        self._receiving[message.shard] = node, nbytes, clock()
        return self._executor.room(*place)

    def arrived(self, message: wire.Values) -> None:
        """The values lie whole in their landing place, which is the executor's until it lends it again."""
        _, nbytes, start = self._receiving.pop(message.shard)
        self._recording.exchanged(Kind.RECEIVE_VALUES, message.shard, self._worker, message.sequence, start)
        self._answered(message, nbytes)

    def assigned(self, held: Assignment) -> None:
        """Who holds the shards now. The executor pushes again to new primaries what is not acknowledged."""
        self._homes = [assignment.primary_of(held, self._plan, shard) for shard in range(len(self._homes))]
        self._gate.assigned(self._homes)

    def lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        for shard in [shard for shard, (sender, *_) in self._receiving.items() if sender == node]:
            del self._receiving[shard]
            self._gate.broken(shard)

    def says(
        self,
        message: commands.PushPart
        | commands.FetchValues
        | commands.Lend
        | commands.SendMark
        | commands.SendRest
        | commands.WishLeases,
    ) -> None:
        """The executor has something for shards, or a place for values."""
        company = self._company
        match message:
            case commands.PushPart():
                self._push(message)
            case commands.FetchValues(shard) if self._early is not None:
                self._early[shard] = message
            case commands.FetchValues(shard, request, have, after, by, returns):
                fetch = wire.Fetch(*company.about, shard, self._worker, request, have, after, by, returns)
                company.send(self._homes[shard], fetch)
            case commands.Lend(shard):
                self._gate.lend(shard)
            case commands.SendMark(sequence):
                for shard in self._bodies:
                    company.send(self._homes[shard], wire.Mark(*company.about, shard, self._worker, sequence))
            case commands.SendRest(pushes):
                for shard in self._bodies:
                    company.send(self._homes[shard], wire.Rest(*company.about, shard, self._worker, pushes))
            case commands.WishLeases(wish):
                said = wire.LeaseWish(
                    *company.about,
                    LEASES,
                    self._worker,
                    wish.number,
                    wish.done,
                    wish.pushed,
                    wish.batches,
                    wish.below,
                    wish.until,
                    wish.heard,
                    wish.quits,
                    wish.back,
                    wish.bad,
                )
                company.send(self._homes[LEASES], said)

    def _push(self, message: commands.PushPart) -> None:
        job, generation = self._company.about
        body = self._bodies[message.shard]
        push = wire.Push(
            job,
            message.shard,
            generation,
            self._worker,
            message.sequence,
            body.parts[message.part][0],
            body.nbytes,
            message.part,
            message.based_on,
            message.based_clock,
            message.fetch,
            message.have,
            message.mark,
            message.by,
        )
        ranks = self._ranks[message.shard]
        priority = (
            Priority.of_push(ranks.index(message.needed), len(ranks)) if message.needed in ranks else Priority.BLOB
        )
        data = self._executor.room(message.offset, message.nbytes)
        left = partial(self._left, message, clock())
        self._company.send_body(self._homes[message.shard], push, data, priority, left)

    def _left(self, message: commands.PushPart, start: float) -> None:
        self._recording.exchanged(Kind.SEND_PUSH, message.shard, self._worker, message.sequence, start)
        self._executor.send(commands.Left(message.token))

    def _answered(self, message: wire.Values, landed: int) -> None:
        self._executor.send(
            commands.Answered(
                message.shard,
                message.sequence,
                message.request,
                message.by,
                message.refusal,
                message.log_number,
                True,
                message.version,
                message.clock,
                message.whole,
                message.number,
                landed > 0,
                landed,
                message.lately,
            )
        )

    def _refuse(self, node: NodeId, what: str) -> None:
        self._company.refused("values refused", node, what)
