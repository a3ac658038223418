"""What a worker's executor says to shards and hears from them, where it holds one segment of a model replica."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import JobFailedError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.pushing import Pushing
from p2pnn.job import assignment
from p2pnn.job.plan import Plan
from p2pnn.ps.consistency import settings
from p2pnn.ps.layout import LANDINGS, Bump, worker_layout, workers_of
from p2pnn.ps.worker import Replica
from tests.executor import models
from tests.executor.mesh import contiguous, spec_for
from tests.executor.pump import GENERATION, hybrid, hybrid_plan

NODE = 1
"""The second segment of worker 0."""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Pushing, Replica, Plan]:
    spec = hybrid(spec_for(models.scaled(models.dense()), BlobStore(tmp_path / "blobs")), "async")
    plan = hybrid_plan(spec, contiguous(spec.graph, 2), 2, 3, copies=2)
    layout, [worker, _] = worker_layout(spec, plan, NODE), workers_of(plan)
    assert spec.data is not None
    arena = Arena.create(layout.stop)
    buffer = Bump(arena.view, layout.bodies, layout.stop)
    replica = Replica(worker, layout.sharding, settings(spec.data), generation=GENERATION, buffer=buffer)
    return Pushing(worker, replica, plan, layout, arena), replica, plan


def spoken(replica: Replica, plan: Plan) -> list[int]:
    """The shards that the node speaks to; there are others."""
    found = [number for number in range(len(plan.shards)) if number in replica._port]
    assert 0 < len(found) < len(plan.shards)
    return found


def test_places_are_lent_to_the_shards_of_its_own_layers_which_are_asked(made: tuple[Pushing, Replica, Plan]) -> None:
    pushing, replica, plan = made
    said = pushing.messages()
    lent = Counter(message.shard for message in said if isinstance(message, commands.Lend))
    assert lent == dict.fromkeys(spoken(replica, plan), LANDINGS)
    asked = [message.shard for message in said if isinstance(message, commands.FetchValues)]
    assert sorted(asked) == spoken(replica, plan)
    assert pushing.messages() == []


def test_a_new_primary_of_one_of_them_is_asked_again_and_one_of_others_is_nobodys_business(
    made: tuple[Pushing, Replica, Plan],
) -> None:
    pushing, replica, plan = made
    pushing.messages()
    mine = spoken(replica, plan)
    before = assignment.initial(plan, GENERATION)
    for changed in range(len(plan.shards)):
        shards = list(before.shards)
        shards[changed] = msgspec.structs.replace(shards[changed], generation=GENERATION + 1)
        pushing.assigned(assignment.encode(assignment.Assignment(tuple(shards))))
        asked = [(m.shard, m.by) for m in pushing.messages() if isinstance(m, commands.FetchValues)]
        assert asked == ([(changed, GENERATION + 1)] if changed in mine else [])


def test_what_nobody_says_ends_it_with_a_sentence(made: tuple[Pushing, Replica, Plan]) -> None:
    pushing, replica, plan = made
    [other] = set(range(len(plan.shards))) - set(spoken(replica, plan)) - {0} or {0}
    answered = commands.Answered(other, 1, 1, GENERATION, "", 0, False)
    with pytest.raises(JobFailedError, match=f"shard {other} answered '', which it cannot"):
        pushing.answered(answered)
    mine = spoken(replica, plan)[0]
    with pytest.raises(JobFailedError, match=f"holds shard {mine}, refused a push as 'WHIM', .* same version"):
        pushing.answered(commands.Answered(mine, 1, 1, GENERATION, "WHIM", 0, False))
    with pytest.raises(JobFailedError, match="message 99 left, which it did not send"):
        pushing.left(99)
    with pytest.raises(JobFailedError, match="another plan"):
        pushing.assigned(assignment.encode(assignment.Assignment()))
