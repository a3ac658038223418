"""What the nodes of one model replica say to each other: tensors, sent from their places in the arena, received into them, and
both recorded; and what goes with them, such as which batches a data-parallel run's worker trains."""

from __future__ import annotations

from functools import partial
from typing import Final

from p2pnn.executor import commands
from p2pnn.job.plan import Plan
from p2pnn.job.segment import transfers
from p2pnn.job.spec import JobSpec
from p2pnn.node.company import Company
from p2pnn.node.executor import Executor
from p2pnn.node.links import Priority
from p2pnn.node.recording import Recording, clock
from p2pnn.train.frames import Layout
from p2pnn.train.gate import Gate
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

SAID: Final = (commands.Send, commands.Retired, commands.Squares, commands.Dealt, commands.Decided)
"""What an executor says to the other nodes of its replica."""

Heard = wire.Retired | wire.Squares | wire.Dealt | wire.Decided


class Tensors:
    """Of the replica that this node computes for. Executors count the nodes of their replica, messages those of the plan."""

    def __init__(
        self, spec: JobSpec, plan: Plan, layout: Layout, company: Company, executor: Executor, recording: Recording
    ) -> None:
        number = plan.worker_of(company.index)
        self._replica = plan.replicas[number].nodes if plan.replicas else tuple(range(len(plan.nodes)))
        self._steps = spec.steps
        self._layout = layout
        self._company = company
        self._executor = executor
        self._recording = recording
        self._transfers = transfers(spec.graph, plan.assignment)
        self._gate = Gate(spec.graph, plan.replica(number), plan.position(company.index), layout)

    def receive(self, node: NodeId, message: Heard) -> None:
        """What another node of the replica tells."""
        if self._company.index_of(node) != message.index or message.index not in self._replica:
            return
        position = self._replica.index(message.index)
        match message:
            case wire.Retired():
                self._executor.send(commands.PeerRetired(position, message.count))
            case wire.Squares():
                self._executor.send(commands.PeerSquares(position, message.step, list(message.squares)))
            case wire.Decided() if self._replica[0] == self._company.index:
                self._executor.send(commands.Decided(message.steps, message.back, message.bad, position))
            case wire.Dealt() if position == 0:
                self._dealt(node, message)

    def _dealt(self, node: NodeId, message: wire.Dealt) -> None:
        if any(not start < stop <= self._steps for start, stop in message.ranges):
            reason = f"batches {message.ranges} of {self._steps}"
            self._company.refused("steps refused", node, reason)
            return
        self._executor.send(commands.Dealt(message.first, message.ranges, message.trained_below))

    def body_for(self, node: NodeId, message: wire.Tensor, nbytes: int) -> memoryview | None:
        """The tensor's place; None, with a line in the log, for what no honest node would send."""
        index = self._company.index_of(node)
        if index not in self._replica:
            return None
        source = self._replica.index(index)
        refusal = self._gate.refusal(message.transfer, message.micro_batch, source, nbytes)
        if refusal:
            self._company.refused("tensor refused", node, refusal)
            return None
        offset, size = self._gate.take(message.transfer, message.micro_batch)
        self._recording.begins(message.transfer, message.micro_batch)
        return self._executor.room(offset, size)

    def arrived(self, message: wire.Tensor) -> None:
        self._executor.send(commands.Arrived(message.transfer, message.micro_batch))
        self._recording.received(message.transfer, message.micro_batch)

    def says(
        self, message: commands.Send | commands.Retired | commands.Squares | commands.Dealt | commands.Decided
    ) -> None:
        """The executor has something for the other nodes."""
        company = self._company
        match message:
            case commands.Send():
                place = self._layout.place(message.transfer, message.micro_batch)
                target = self._replica[self._transfers[message.transfer].target]
                tensor = wire.Tensor(*company.about, message.transfer, message.micro_batch)
                sent = partial(self._sent, message, clock())
                company.send_body(target, tensor, self._executor.room(*place), Priority.TENSOR, sent)
            case commands.Retired():
                self._gate.retired(message.count)
                for sender in self._gate.senders:
                    retired = wire.Retired(*company.about, company.index, message.count)
                    company.send(self._replica[sender], retired)
            case commands.Squares():
                self._tell(wire.Squares(*company.about, company.index, message.step, tuple(message.squares)))
            case commands.Dealt(first, ranges, trained_below):
                self._tell(wire.Dealt(*company.about, company.index, first, ranges, trained_below))
            case commands.Decided(steps, back, bad):
                company.send(self._replica[0], wire.Decided(*company.about, company.index, steps, back, bad))

    def _tell(self, message: wire.Message) -> None:
        """All others of the replica."""
        for index in self._replica:
            if index != self._company.index:
                self._company.send(index, message)

    def _sent(self, message: commands.Send, start: float) -> None:
        """The tensor's memory is free: tell the executor."""
        self._executor.send(commands.Sent(message.transfer, message.micro_batch))
        self._recording.sent(message.transfer, message.micro_batch, start)
