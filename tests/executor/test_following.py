"""A worker that is cut over nodes, whose pushes are refused: what none of its shards has taken, whichever node speaks to them, is
trained again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2pnn.executor import commands
from tests.executor.mesh import contiguous
from tests.executor.pump import hybrid_plan, store
from tests.executor.test_leased import Losing, job


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

    with Losing(spec, hybrid_plan(spec, contiguous(spec.graph, 2), 2, 2), blobs) as pump:
        pump.spoil = spoil
        for until in (5, 40):
            pump.train(until)
            pump.evaluate("test")
        assert set(pump.finish()) == {0}
    assert tuple(sum(pump.served[shard].taken.values()) for shard in (0, 1)) == taken
