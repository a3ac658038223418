"""The commands of a run's script: numbered, issued, answered by every node of the plan that takes part."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.job.script import Checkpoint, Command, Done, Evaluate, Finish, Train
from p2pnn.job.watch import Watch
from p2pnn.types import NodeId


@dataclass(slots=True)
class Issued:
    """A command that waits for answers; since: when it was issued."""

    command: Command
    since: float
    answers: dict[NodeId, Done] = field(default_factory=dict)


class Orders:
    """Pure. nodes: whose answers are waited for. watch: told of every answer that a node owes."""

    def __init__(self, watch: Watch) -> None:
        self.nodes: list[NodeId] = []
        self.last = 0
        self._watch = watch
        self._open: dict[int, Issued] = {}
        self._unsent: list[Command] = []

    @property
    def open(self) -> tuple[int, ...]:
        """Numbers of the commands that not all nodes have answered."""
        return tuple(self._open)

    @property
    def training(self) -> int:
        """How many of them train."""
        return sum(isinstance(issued.command, Train) for issued in self._open.values())

    @property
    def oldest(self) -> int:
        """All nodes have answered what has a lower number."""
        return min(self._open, default=self.last + 1)

    def next(self) -> int:
        """The number of the next command."""
        self.last += 1
        return self.last

    def issue(self, command: Command, now: float) -> None:
        """`take` sends it."""
        if not isinstance(command, Finish):
            self._open[command.sequence] = Issued(command, now)
            for node in self.nodes:
                self._watch.expect(node, command.sequence, now, training=isinstance(command, Train))
        self._unsent.append(command)

    def answer(self, node: NodeId, done: Done) -> Issued | None:
        """A node's answer; returns the command when it is the last one."""
        issued = self._open.get(done.sequence)
        if issued is None:
            return None
        if node in self.nodes:
            issued.answers[node] = done
        return self._complete(done.sequence)

    def without(self, node: NodeId, now: float) -> tuple[list[Issued], list[Evaluate | Checkpoint]]:
        """A node takes part no more. Returns what all others have answered already, and what is withdrawn: an evaluation or a
        checkpoint is one only with all shares, and its shares are dealt out anew."""
        self.nodes = [other for other in self.nodes if other != node]
        self._watch.forget(node, now)
        withdrawn = [i.command for i in self._open.values() if isinstance(i.command, Evaluate | Checkpoint)]
        for command in withdrawn:
            del self._open[command.sequence]
            for other in self.nodes:
                self._watch.owes_no_more(other, command.sequence)
        for issued in self._open.values():
            issued.answers.pop(node, None)
        complete = [self._complete(number) for number in tuple(self._open)]
        return [issued for issued in complete if issued is not None], withdrawn

    def _complete(self, number: int) -> Issued | None:
        """A command that all have answered, which is not open any more."""
        issued = self._open[number]
        if not all(node in issued.answers for node in self.nodes):
            return None
        del self._open[number]
        return issued

    def take(self) -> tuple[Command, ...]:
        """What was issued since the last call: to be sent at once."""
        unsent, self._unsent = tuple(self._unsent), []
        return unsent
