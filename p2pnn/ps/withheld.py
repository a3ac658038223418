"""Answers that are due and must not leave yet: what holds them back, and when that is over. Pure.

A bound (`ssp`), the round that a refused push was for, or the warm start holds back the answer to a push, or values that were
asked for; a mark holds back the values that were asked for at it. All of that follows from the shard's state, so another process
that takes over holds back the same.
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
        self._held: dict[Worker, Due] = {}
        self._awaiting: dict[Worker, tuple[Due, int]] = {}

    def __contains__(self, worker: Worker) -> bool:
        """Whether an answer to it is held back, other than by a mark."""
        return worker in self._held

    def pushed(self, due: Due) -> None:
        """A push of the worker is decided."""
        worker, state = due.worker, self._state
        if worker not in state.guard.set_aside and (self._how.kind == "ssp" or worker in state.out):
            self._held[worker] = due
        else:
            self._answers.add(due)

    def pulled(self, due: Due, after: int) -> None:
        """The worker wants values, after: at a mark, or 0 for now. It wants none that it asked for before."""
        if due.worker in self._held and self._held[due.worker].request:
            del self._held[due.worker]
        if after:
            self._awaiting[due.worker] = due, after
        elif self._is_cold(due.worker):
            self._held[due.worker] = due
        else:
            self._answers.add(due)

    def release(self) -> None:
        """Let go what nothing holds back any more."""
        for worker, (due, after) in list(self._awaiting.items()):
            if self._state.marks.marked >= after:
                del self._awaiting[worker]
                self._answers.add(due)
        self._release_held()

    def _release_held(self) -> None:
        state, clock = self._state, self._state.clock
        for worker in list(self._held):
            ahead = self._how.kind == "ssp" and state.roster[worker].clock - clock > self._how.bound
            if worker in state.guard.set_aside or not (ahead or worker in state.out or self._is_cold(worker)):
                self.let_go(worker)

    def let_go(self, worker: Worker) -> None:
        """Whatever holds it back."""
        if worker in self._held:
            self._answers.add(self._held.pop(worker))

    def drop(self, worker: Worker) -> None:
        """It is gone."""
        self._held.pop(worker, None)
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
