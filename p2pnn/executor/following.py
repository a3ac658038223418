"""Another node than the first of a data-parallel run's worker that is cut over nodes: it trains the batches that the first is
granted (`ps.dealing`), and tells it how many steps its own shards have decided.

The first is dealt batches only as far as its script lets it train. This node may hear of them before it has come as far in its
own: what stands before that, as a checkpoint at the end of an epoch, comes first.
"""

from __future__ import annotations

from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.leased import LeasedSession
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.dealing import Deal, Dealt
from p2pnn.train import machine as m


class FollowingSession(LeasedSession):
    """One node of a worker from Prepare to Finish."""

    _told = 0

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        super().__init__(channel, arena, prepare, spec, plan)
        self._let = 0  # steps that the machine is to do
        self._refused: list[tuple[int, int, bool]] = []  # steps that were not told yet
        self._replica.decided.on_refused = lambda *about: self._refused.append(about)

    def _make_steps(self, spec: JobSpec, step: int) -> Dealt:
        self._book = Dealt(step)
        return self._book

    @property
    def _steps(self) -> Dealt:
        return self._book

    def _take(self, message: commands.ToExecutor) -> None:
        if not isinstance(message, commands.Dealt):
            super()._take(message)
            return
        self._book.take(Deal(message.first, message.ranges, message.trained_below))
        self._begin()
        self._answer_trained()

    def _train(self, until: int) -> None:
        self._begin()

    @property
    def _begun_steps(self) -> int:
        return self._let

    def _begin(self) -> None:
        """Begin the steps that are dealt, as far as the script has come."""
        before, book = self._let, self._book
        while self._let < book.granted and book.batch(self._let) < self._until:
            self._let += 1
        if self._let > before:
            self._dealt()

    def _say(self, *, idle: bool) -> None:
        steps, _ = self._replica.acknowledged
        if steps > self._told:
            self._told = steps
            back, bad = (
                tuple((first, stop) for first, stop, are in self._refused if are is bad) for bad in (False, True)
            )
            self._refused.clear()
            self._channel.send(commands.Decided(steps, back, bad))

    def _update(self, action: m.Update) -> None:
        super()._update(action)
        self._book.passed(self._machine.step)
