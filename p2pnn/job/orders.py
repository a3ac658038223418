"""The commands of a run's script: numbered, issued, answered by every node of the plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.job.script import Command, Done, Finish, Train
from p2pnn.job.watch import Watch
from p2pnn.types import NodeId


@dataclass(slots=True)
class Issued:
    """A command that waits for answers; since: when it was issued."""

    command: Command
    since: float
    answers: dict[NodeId, Done] = field(default_factory=dict)


class Orders:
    """Pure. watch: told of every answer that a node owes."""

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
        issued.answers[node] = done
        if len(issued.answers) < len(self.nodes):
            return None
        del self._open[done.sequence]
        return issued

    def take(self) -> tuple[Command, ...]:
        """What was issued since the last call: to be sent at once."""
        unsent, self._unsent = tuple(self._unsent), []
        return unsent
