"""Answers that are due and must not leave yet: what holds them back, and when that is over. Pure.

A bound (`ssp`), the round that a refused push was for, or the warm start holds back the answer to a push, or values that were
asked for; where a worker returns from a rest, its values wait until the shard has decided that; a mark holds back the values that
were asked for at it. All of that follows from the shard's state, so another process that takes over holds back the same.
"""

from __future__ import annotations

from p2pnn.ps.answers import Answers, Due
from p2pnn.ps.consistency import Settings
from p2pnn.ps.messages import Worker
from p2pnn.ps.state import State


class Withheld:
    """Of one shard. answers: where they go."""

    def __init__(self, state: State, settings: Settings, answers: Answers) -> None:
        self._state, self._settings, self._answers = state, settings, answers
        self._how = settings.consistency
        self._held: dict[tuple[Worker, bool], Due] = {}  # to its pushes, and to its pull
        self._awaiting: dict[Worker, tuple[Due, int]] = {}

    def __contains__(self, worker: Worker) -> bool:
        """Whether an answer to a push of it is held back."""
        return (worker, False) in self._held

    def pushed(self, due: Due) -> None:
        """A push of the worker is decided."""
        worker, state = due.worker, self._state
        if worker not in state.guard.set_aside and (self._how.kind == "ssp" or worker in state.out):
            self._held[worker, False] = due
        else:
            self._answers.add(due)

    def pulled(self, due: Due, after: int) -> None:
        """The worker wants values, after: at a mark, or 0 for now. It wants none that it asked for before."""
        self._held.pop((due.worker, True), None)
        if after:
            self._awaiting[due.worker] = due, after
        else:
            self._held[due.worker, True] = due

    def release(self) -> None:
        """Let go what nothing holds back any more."""
        for worker, (due, after) in list(self._awaiting.items()):
            if self._state.marks.marked >= after:
                del self._awaiting[worker]
                self._answers.add(due)
        self._release_held()

    def _release_held(self) -> None:
        state, clock = self._state, self._state.clock
        for (worker, pulled), due in list(self._held.items()):
            member = state.roster[worker]
            waits = due.returns > member.returned or self._is_cold(worker) or (not pulled and worker in state.out)
            ahead = self._how.kind == "ssp" and member.clock - clock > self._how.bound
            if worker in state.guard.set_aside or not (ahead or waits):
                self._answers.add(self._held.pop((worker, pulled)))

    def let_go(self, worker: Worker) -> None:
        """Whatever holds it back."""
        for pulled in (False, True):
            if (due := self._held.pop((worker, pulled), None)) is not None:
                self._answers.add(due)

    def drop(self, worker: Worker) -> None:
        """It is gone."""
        for pulled in (False, True):
            self._held.pop((worker, pulled), None)
        self._awaiting.pop(worker, None)

    def clear(self) -> None:
        """Nobody waits here any more."""
        self._held.clear()
        self._awaiting.clear()

    def _is_cold(self, worker: Worker) -> bool:
        """Whether the first worker is still to train alone."""
        state = self._state
        first = next(iter(state.training), worker)
        alone = worker != first and first not in state.marks.ahead
        return alone and state.versions.number < self._settings.warm_start
