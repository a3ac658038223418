"""What one node of a running job keeps for the next coordinator: the commands that it got and what it has answered.

A coordinator may die between any two messages. With each command it says where its script stands (`job.run_state`) and which
of its commands all nodes have answered, so a node keeps only what is newer. A new coordinator asks all nodes of the job for
this, takes the state that came with the newest command of all, has the others catch up on commands that they missed, and
learns the answers that the old one may never have had. Commands are numbered, so none is carried out twice.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.job.script import Progress

KEPT_MAX: Final = 64
"""Commands that no coordinator has so far unanswered; beyond, its state is forgotten, and a takeover begins a new start."""


class Totals(msgspec.Struct, array_like=True):
    """What a node's Progress messages add up to since the start: so that none is lost or counted twice in a takeover."""

    loss_sum: float = 0.0
    rows: int = 0
    metrics: dict[str, tuple[float, float]] = {}

    def add(self, progress: Progress) -> None:
        self.loss_sum += progress.losses[0]
        self.rows += progress.losses[1]
        for name, (total, count) in progress.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = (before[0] + total, before[1] + count)

    def beyond(self, counted: Totals) -> tuple[tuple[float, int], dict[str, tuple[float, float]]]:
        """(losses, metrics) of a Progress that brings `counted` up to this."""
        metrics = {
            name: (total - counted.metrics.get(name, (0.0, 0.0))[0], count - counted.metrics.get(name, (0.0, 0.0))[1])
            for name, (total, count) in self.metrics.items()
        }
        return (self.loss_sum - counted.loss_sum, self.rows - counted.rows), metrics


class PartState(msgspec.Struct, frozen=True, array_like=True):
    """A node's answer to a new coordinator. stage: `running`, or anything else with which a start cannot be gone on with.

    last: the number of the newest command. commands, answers: by number, as they travelled. state: what the coordinator said
    with the newest command. record: of the job, as the node knows it. text: why not running, as a clause.
    """

    stage: str
    step: int = 0
    last: int = 0
    commands: tuple[tuple[int, bytes], ...] = ()
    answers: tuple[tuple[int, bytes], ...] = ()
    state: bytes = b""
    totals: Totals = msgspec.field(default_factory=Totals)
    text: str = ""
    record: bytes = b""


class PartLog:
    """Pure."""

    def __init__(self) -> None:
        self.last = 0
        self._step = 0
        self._commands: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._state = b""
        self._totals = Totals()

    def command(self, number: int, data: bytes, oldest: int, state: bytes) -> bool:
        """A command came; False for one that has come before. oldest: all nodes have answered those below it."""
        if number <= self.last:
            return False
        self.last = number
        self._commands[number] = data
        self._state = state
        for kept in (self._commands, self._answers):
            for old in [n for n in kept if n < oldest]:
                del kept[old]
        if len(self._commands) > KEPT_MAX:
            forgotten = min(self._commands)
            del self._commands[forgotten]
            self._answers.pop(forgotten, None)
        return True

    def answered(self, number: int, data: bytes) -> None:
        """The executor has answered a command; data: the report as it travels."""
        if number in self._commands:
            self._answers[number] = data

    def progress(self, progress: Progress) -> None:
        self._totals.add(progress)
        self._step = progress.step

    def tell(self, record: bytes) -> PartState:
        """What a new coordinator needs. record: of the job, as it is known here."""
        commands, answers = tuple(self._commands.items()), tuple(self._answers.items())
        return PartState("running", self._step, self.last, commands, answers, self._state, self._totals, record=record)
