"""A server's end of its conversations with the workers: pushes are received into their slots in its arena, answers leave from it.

A push is received straight into its slot once `ps.gate` has allowed it; whether it is taken decides the shard, in the executor.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from p2pnn.executor import commands
from p2pnn.job.plan import Plan
from p2pnn.job.spans import Kind
from p2pnn.node.company import Company
from p2pnn.node.executor import Executor
from p2pnn.node.links import Priority
from p2pnn.node.recording import Recording, clock
from p2pnn.node.replicating import Part, Replicating
from p2pnn.ps.gate import PushGate
from p2pnn.ps.layout import ServerLayout
from p2pnn.replication.leases import Wish
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

SAID: Final = (commands.SendAnswer, commands.SendLeased)
"""What an executor says to workers."""


class Serving:
    """Of the shards that this node holds. copies: what passes between it and the others that do."""

    def __init__(
        self, plan: Plan, layout: ServerLayout, company: Company, executor: Executor, recording: Recording
    ) -> None:
        self._layout = layout
        self._company = company
        self._executor = executor
        self._recording = recording
        self._gate = PushGate(plan, layout)
        self._coming: dict[NodeId, set[Part]] = {}
        self.copies = Replicating(plan, layout, company, executor, self._gate)

    def receive(self, node: NodeId, message: wire.Fetch | wire.Mark | wire.LeaseWish | wire.Rest) -> None:
        """A worker wants values or batches, has none, or has done its commands up to one."""
        speaker = self._gate.speaker(message.shard, message.worker)
        if speaker is None or speaker != self._company.index_of(node):
            what = f"{type(message).__name__} of worker {message.worker} to shard {message.shard}"
            self._company.refused("refused", node, what)
        elif isinstance(message, wire.Mark):
            self._executor.send(commands.Marked(message.shard, message.worker, message.sequence))
        elif isinstance(message, wire.Rest):
            self._executor.send(commands.Rested(message.shard, message.worker, message.pushes))
        elif isinstance(message, wire.LeaseWish):
            wish = Wish(
                message.number,
                message.done,
                message.pushed,
                message.batches,
                message.below,
                message.until,
                message.heard,
                message.quits,
                message.back,
                message.bad,
            )
            self._executor.send(commands.LeasesWished(message.shard, message.worker, wish))
        else:
            about = (message.shard, message.worker, message.request, message.have, message.after)
            self._executor.send(commands.Fetched(*about, message.by, message.returns))

    def body_for(self, node: NodeId, message: wire.Push, nbytes: int) -> memoryview | None:
        """The slot of the part; None for one that is known, and, with a line in the log, for what no honest worker would send."""
        index = self._company.index_of(node)
        refusal = self._gate.refusal(message.worker, index, message.shard, message.sequence, message.part, nbytes)
        if refusal:
            self._company.refused("push refused", node, refusal)
            if self._gate.is_misfit(message.worker, index, message.shard, message.part, nbytes):
                self._arrived(message, nbytes)
            return None
        if not self.copies.may_push(message.shard, message.by):
            self._company.refused("push to a backup", node, f"worker {message.worker}, shard {message.shard}")
            return None
        about = (message.shard, message.worker, message.sequence, message.part)
        if self._gate.is_known(*about):
            self._arrived(message)
            return None
        self._recording.push_begins(*about)
        self._coming.setdefault(node, set()).add(about)
        return self._executor.room(*self._gate.take(*about))

    def arrived(self, node: NodeId, message: wire.Push) -> None:
        """A part lies whole in its slot."""
        self._recording.push_received(message.shard, message.worker, message.sequence, message.part)
        self._coming.get(node, set()).discard((message.shard, message.worker, message.sequence, message.part))
        self._gate.received(message.shard, message.worker, message.sequence, message.part)
        self._arrived(message)

    def lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        for part in self._coming.pop(node, ()):
            self._gate.broken(*part)
        self.copies.lost(node)

    def says(self, message: commands.SendAnswer | commands.SendLeased) -> None:
        """The executor has decided pushes, or has values or batches for a worker."""
        job, generation = self._company.about
        shard, worker = message.shard, message.worker
        speaker = self._gate.speaker(shard, worker)
        assert speaker is not None, "an executor answers workers of the plan"
        if isinstance(message, commands.SendLeased):
            leased = wire.Leased(
                job,
                generation,
                shard,
                worker,
                message.number,
                message.ranges,
                message.trained_below,
                message.again,
                message.never,
            )
            self._company.send(speaker, leased)
            return
        self._gate.acknowledged(shard, worker, message.acknowledged)
        if not message.nbytes:
            pushed = wire.Pushed(
                job,
                shard,
                generation,
                worker,
                message.sequence,
                refusal=message.refusal,
                request=message.request,
                log_number=message.log_number,
                by=message.by,
                lately=message.lately,
            )
            self._company.send(speaker, pushed)
            return
        values = wire.Values(
            job,
            generation,
            shard,
            worker,
            message.sequence,
            message.request,
            message.version,
            message.clock,
            message.whole,
            message.number,
            message.refusal,
            message.log_number,
            message.by,
            message.lately,
        )
        left = partial(self._left, message, clock())
        body = self._executor.room(message.offset, message.nbytes)
        self._company.send_body(speaker, values, body, Priority.VALUES, left)

    def _left(self, message: commands.SendAnswer, start: float) -> None:
        self._recording.exchanged(Kind.SEND_VALUES, message.shard, message.worker, message.sequence, start)
        self._executor.send(commands.AnswerLeft(message.token))

    def _arrived(self, message: wire.Push, misfit: int = -1) -> None:
        self._executor.send(
            commands.PushArrived(
                message.shard,
                message.worker,
                message.sequence,
                message.part,
                message.based_on,
                message.based_clock,
                message.fetch,
                message.have,
                message.mark,
                message.by,
                misfit,
            )
        )
