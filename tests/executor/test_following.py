"""A worker that is cut over nodes, whose pushes are refused: what none of its shards has taken, whichever node speaks to them, is
trained again."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2pnn.executor import commands
from p2pnn.executor.following import FollowingSession
from p2pnn.job import script
from p2pnn.ps.dealing import Dealt
from tests.executor.mesh import contiguous
from tests.executor.pump import hybrid_plan, store
from tests.executor.test_leased import Cut, job


@pytest.mark.parametrize(("bad", "taken"), [((0, 1), (40, 40)), ((1,), (40, 39)), ((0,), (39, 40))])
def test_a_step_is_trained_again_that_no_shard_of_any_node_has_taken(
    tmp_path: Path, bad: tuple[int, ...], taken: tuple[int, int]
) -> None:
    """One that only some of them refuse is trained: again it would be in the others twice. bad: shards that refuse a push."""
    blobs = store(tmp_path)
    spec = job(blobs)

    def spoil(worker: int, message: commands.PushPart, place: memoryview) -> None:
        if worker == 0 and message.shard in bad and message.sequence == 2:
            place[:4] = np.array([np.nan], np.float32).tobytes()

    with Cut(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2), blobs) as pump:
        pump.spoil = spoil
        for until in (5, 40):
            pump.train(until)
            pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert tuple(sum(pump.served[shard].taken.values()) for shard in (0, 1)) == taken


class Told(FollowingSession):
    """What the script and the first node say comes in the order in which a test says it; `begun` is what the machine is given."""

    def __init__(self, *commands: script.Command) -> None:
        self.begun: list[script.Command] = []
        self._book, self._let = Dealt(0), 0
        self._trains: deque[script.Train] = deque()
        self._script, self._given = deque(commands), deque()
        self._until, self._restored = 0, False
        machine: Any = SimpleNamespace(command=self.begun.append, step=4)
        channel: Any = SimpleNamespace(send=lambda *messages: None)
        self._machine, self._channel = machine, channel

    def _is_at(self, command: script.Command) -> bool:
        return True

    def _progress(self, now: float, *, always: bool = False) -> None:
        pass

    @property
    def steps(self) -> list[int | None]:
        """Up to which step the machine is to train; None for a checkpoint."""
        return [command.until_step if isinstance(command, script.Train) else None for command in self.begun]


@pytest.mark.parametrize("looks", [True, False])
def test_what_is_dealt_early_waits_for_what_stands_before_it_in_the_script(looks: bool) -> None:
    """The first node has come further: its deal and the word that all before is trained may be heard at once. looks: between."""
    told = Told(script.Train(1, 4), script.Checkpoint(2, ()), script.Train(3, 9))
    told._follow_script()
    told._take(commands.Dealt(0, ((0, 4),), 0))
    assert told.steps == [4]
    told._given.clear()
    told._take(commands.Dealt(4, (), 4))
    if looks:
        told._follow_script()
    told._take(commands.Dealt(4, ((4, 9),), 4))
    if not looks:
        assert told.steps == [4]
        told._follow_script()
    told._given.clear()
    told._follow_script()
    assert told.steps == [4, None, 9]


def test_batches_are_begun_as_far_as_the_script_lets_them_be_trained() -> None:
    told = Told(script.Train(1, 4))
    told._follow_script()
    told._take(commands.Dealt(0, ((2, 6),), 0))
    assert told.steps == [2], "two of the worker's steps train batches below 4"
    told._script.append(script.Train(2, 9))
    told._follow_script()
    assert told.steps == [2, 4]
