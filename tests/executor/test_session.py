"""What Prepare brings is checked before anything is allocated. Whole sessions are in test_loop, test_runner and test_replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.errors import JobFailedError, UsageError
from p2pnn.executor import commands
from p2pnn.executor.session import manifest_of, read
from p2pnn.job.plan import Plan, Replica, ShardHome
from p2pnn.job.spec import JobSpec
from tests.executor import models
from tests.executor.mesh import manifest, spec_for
from tests.executor.pump import data_plan, parallel
from tests.train.graphs import plan_for

change = msgspec.structs.replace


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def prepare(spec: JobSpec, plan: Plan, blobs: BlobStore, **fields: Any) -> commands.Prepare:
    path = blobs.path(blobs.put(msgspec.msgpack.encode(spec)))
    return commands.Prepare(
        str(path), msgspec.msgpack.encode(plan), **{"node_index": 0, "blobs": str(blobs.root)} | fields
    )


def test_what_fits_is_read(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    plan = plan_for([0] * len(spec.graph.ops), 1, 2)
    assert read(prepare(spec, plan, blobs)) == (spec, plan)
    data = parallel(spec)
    both = data_plan(data, 2, 2, together=True)
    for role in ("compute", "serve"):
        assert read(prepare(data, both, blobs, node_index=1, role=role)) == (data, both)


def test_a_checkpoint_comes_with_prepare_or_does_not(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    plan = plan_for([0] * len(spec.graph.ops), 1, 2)
    kept = manifest(7, ())
    assert manifest_of(prepare(spec, plan, blobs)) is None
    assert manifest_of(prepare(spec, plan, blobs, checkpoint=msgspec.msgpack.encode(kept))) == kept


def test_roles_that_the_plan_does_not_give_are_refused(blobs: BlobStore) -> None:
    data = parallel(spec_for(models.dense(), blobs))
    plan = data_plan(data, 2, 1)  # nodes 0 and 1 compute, 2 serves
    for node, role in ((0, "serve"), (2, "compute"), (1, "watch"), (7, "compute")):
        with pytest.raises(JobFailedError, match=f"gives node {node} nothing to do in the role '{role}'"):
            read(prepare(data, plan, blobs, node_index=node, role=role))


def test_plans_without_the_parts_that_the_job_needs_are_refused(blobs: BlobStore) -> None:
    spec = spec_for(models.dense(), blobs)
    data, plain = parallel(spec), plan_for([0] * len(spec.graph.ops), 1, 2)
    plan = data_plan(data, 2, 1)
    for job, other in ((data, plain), (spec, plan), (data, change(plan, shards=())), (data, change(plan, replicas=()))):
        with pytest.raises(JobFailedError, match="replicas and shards do not go with the job"):
            read(prepare(job, other, blobs))
    for other in (change(plan, shards=(ShardHome(()),)), change(plan, replicas=(Replica((0,)), Replica((9,))))):
        with pytest.raises(JobFailedError, match="a replica or a shard without a node"):
            read(prepare(data, other, blobs))


def test_settings_that_do_not_go_together_are_refused(blobs: BlobStore) -> None:
    data = parallel(spec_for(models.dense(), blobs, batch_size=24, micro_batches=3))
    with pytest.raises(UsageError, match="micro_batches = 3 with sync and 2 workers"):
        read(prepare(data, data_plan(data, 2, 1), blobs))
