"""What a person may write, and what goes together."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from p2pnn import nn
from p2pnn.engine.base import Context
from p2pnn.errors import UsageError
from p2pnn.job.spec import DataParallel, JobSpec, Optimizer
from p2pnn.model.graph import Graph
from p2pnn.ps.consistency import Consistency, Settings, check, check_spec, consistency, is_bitwise, settings
from p2pnn.ps.summing import Summing
from tests.engine.numpy.build import RATE, Array, Run, batch
from tests.engine.numpy.networks import NETWORKS
from tests.ps.models import mlp

ADAM = Optimizer()


@pytest.mark.parametrize(
    ("text", "backup", "found"),
    [
        ("async", 0, Consistency("async")),
        ("sync", 0, Consistency("sync")),
        ("sync", 2, Consistency("sync", backup=2)),
        ("ssp:0", 0, Consistency("ssp", bound=0)),
        ("ssp:3", 0, Consistency("ssp", bound=3)),
        ("local:8", 0, Consistency("local", local_steps=8)),
    ],
)
def test_forms(text: str, backup: int, found: Consistency) -> None:
    assert consistency(text, backup) == found
    assert str(found) == text
    assert found.waits == (text != "async")
    assert found.in_rounds == (found.kind in ("sync", "local"))
    assert found.quorum(5) == 5 - backup


@pytest.mark.parametrize(
    "text", ["", "ssp", "ssp:", "ssp:-1", "ssp:x", "ssp:99999", "local:0", "local", "async:2", "sync:1", "ssp:٣"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write async, ssp:S, sync, or local:H"):
        consistency(text)


def test_backup_is_for_sync() -> None:
    with pytest.raises(UsageError, match="backup:1 goes with sync alone"):
        consistency("async", 1)


SYNC = Settings(consistency("sync"))

replace_spec = msgspec.structs.replace


@pytest.mark.parametrize(
    ("settings", "workers", "optimizer", "words"),
    [
        (Settings(n_push=0), 2, ADAM, "n_push = 0: it must be at least 1"),
        (Settings(n_fetch=-1), 2, ADAM, "n_fetch = -1"),
        (Settings(), 0, ADAM, "workers = 0"),
        (Settings(consistency("sync", 2)), 2, ADAM, "backup:2 with 2 workers: .* from 0 to 1"),
        (Settings(consistency("sync", 3)), 2, ADAM, "backup:3 with 2 workers"),
        (replace(SYNC, n_push=2), 2, ADAM, "n_push = 2, n_fetch = 1 with sync: .* local:H"),
        (replace(SYNC, local_rate=0.1), 2, ADAM, "local_rate = 0.1 with sync: it is for async alone"),
        (replace(SYNC, warm_start=1), 2, ADAM, "warm_start = 1 with sync"),
        (Settings(staleness_max=-1), 2, ADAM, "staleness_max = -1: it is a number from 0 on"),
        (Settings(local_rate=float("nan")), 2, ADAM, "local_rate = nan: it is a number from 0 on"),
        (Settings(local_rate=float("inf")), 2, ADAM, "local_rate = inf"),
        (SYNC, 2, Optimizer(clip_norm=1.0), "clip_norm = 1 with sync"),
        (Settings(push="int4"), 2, ADAM, "no compression 'int4'"),
        (Settings(pull="zip"), 2, ADAM, "no compression 'zip'"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    settings: Settings, workers: int, optimizer: Optimizer, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check(settings, workers, optimizer)


def test_what_goes_together() -> None:
    check(
        Settings(n_push=5, n_fetch=5, local_rate=0.01, warm_start=10, push="int8", pull="bf16"), 4, Optimizer("adagrad")
    )
    check(Settings(consistency("sync", 1)), 2, ADAM)
    check(Settings(consistency("local:8")), 1, Optimizer(clip_norm=1.0))


def spec_of(micro_batches: int = 4, optimizer: Optimizer = ADAM, **data: object) -> JobSpec:
    return JobSpec(
        "net",
        mlp(4),
        {},
        micro_batches=micro_batches,
        optimizer=optimizer,
        patience=3,
        data=DataParallel(**data),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("spec", "workers", "shards", "words"),
    [
        (spec_of(6, consistency="sync"), 4, 1, "micro_batches = 6 with sync and 4 workers: .* write a multiple of 4"),
        (spec_of(consistency="sync", backup=2), 2, 1, "backup:2 with 2 workers"),
        (spec_of(consistency="sync", backup=-1), 2, 1, "backup:-1"),
        (spec_of(n_push=0), 2, 1, "n_push = 0: it must be at least 1"),
        (spec_of(), 2, 5, "shards = 5, but the model has only 4 parameter tensors: take at most 4"),
        (spec_of(optimizer=Optimizer(clip_norm=1.0), consistency="sync"), 2, 1, "clip_norm = 1 with sync"),
        (
            spec_of(replicas=3),
            2,
            1,
            "replicas = 3: each shard lives on 1 node or on 2; 0 takes 2 where there is room for it",
        ),
        (spec_of(consistency="eager"), 2, 1, "no consistency 'eager'"),
        (spec_of(cut="random"), 2, 1, "no way 'random' to cut parameters"),
        (spec_of(push="zip"), 2, 1, "no compression 'zip'"),
        (replace_spec(spec_of(1), schedule="async:2"), 2, 1, "schedule = async:2 keeps .* consistency = async"),
        (replace_spec(spec_of(), kind="evaluate"), 2, 1, "a job of kind evaluate has no gradients"),
        (replace_spec(spec_of(), data=None), 2, 1, "says nothing about its workers"),
    ],
)
def test_jobs_that_cannot_be_run_so(spec: JobSpec, workers: int, shards: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_spec(spec, workers, shards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("workers", "shards"), [(0, 0), (4, 4), (1, 1), (2, 0)])
@pytest.mark.parametrize("how", ["async", "ssp:1", "sync", "local:4"])
def test_jobs_that_can(how: str, workers: int, shards: int) -> None:
    check_spec(spec_of(consistency=how), workers, shards)
    assert settings(DataParallel(how, push="int8", pull="bf16")) == Settings(consistency(how), push="int8", pull="bf16")


def test_everything_of_a_spec_reaches_the_settings() -> None:
    data = DataParallel("async", 0, 3, 2, 1, "equal", "int8", "bf16", 5, 6, 0.1, 7, 8, True)
    assert settings(data) == Settings(Consistency(), "int8", "bf16", 5, 6, 0.1, 7, 8, True)
    assert settings(DataParallel("sync", 2)).consistency == Consistency("sync", backup=2)


def test_which_jobs_have_the_bits_of_one_process() -> None:
    sync = spec_of(consistency="sync")
    assert is_bitwise(sync, 4)
    assert is_bitwise(sync, 2)
    assert is_bitwise(spec_of(6, consistency="sync"), 3)
    assert not is_bitwise(spec_of(6, consistency="sync"), 2)  # three each: (g0 + g1) + g2 is no part of the whole sum
    assert is_bitwise(sync, 1)
    normalized = replace_spec(sync, graph=NETWORKS["resnet"]())
    assert normalized.graph.statistics
    assert is_bitwise(normalized, 1)
    assert not is_bitwise(normalized, 4)
    x, y = nn.Input("x", (8,)), nn.Input("y", (), dtype="int64")
    doubled = replace_spec(sync, graph=nn.Model({}, nn.cross_entropy(nn.Linear(5)(2.0 * x), y)).graph)
    assert doubled.graph.state
    assert is_bitwise(doubled, 4), "a number in the network is state, too, but nothing changes it"
    shared = replace_spec(sync, graph=NETWORKS["shared"]())
    assert is_bitwise(shared, 1)
    assert not is_bitwise(shared, 2)
    assert not is_bitwise(
        spec_of(1, Optimizer("sgd"), consistency="sync"), 1
    )  # one process fuses the update into a GEMM
    for other in (spec_of(), spec_of(consistency="sync", backup=1), spec_of(consistency="sync", push="bf16")):
        assert not is_bitwise(other, 4)
        assert not is_bitwise(other, 1)
    assert is_bitwise(replace_spec(sync, data=None), 3)


MICRO_BATCHES = 6


def totals(graph: Graph, rows: int, *, apart: bool) -> dict[str, Array]:
    """A step's gradients over all micro-batches: summed by the engine, or each by itself and then as a shard sums a round's."""
    run = Run(graph, [0] * len(graph.ops), rows=rows, micro_batches=1 if apart else MICRO_BATCHES)
    (program,) = run.programs
    found: dict[str, list[Array]] = {}
    for m in range(MICRO_BATCHES):
        run.load(0, batch(graph, rows, m, classes=5))
        context = Context(5, 0, m, rows, 1 / MICRO_BATCHES, rate=RATE)
        program.forward(0, context, run.values[0])
        program.backward(0, context, run.gradients[0], index=0 if apart else m)
        if apart:
            for name, gradient in run.end_step(1).items():
                found.setdefault(name, []).append(gradient.copy())
    if not apart:
        return run.end_step(MICRO_BATCHES)
    flat = {name: [gradient.reshape(-1) for gradient in made] for name, made in found.items()}
    return {name: Summing(made[0].size, len(made)).sum(made, kept=True) for name, made in flat.items()}


@pytest.mark.parametrize(
    ("name", "rows"),
    [(name, 16) for name in ("lenet", "resnet", "diamond", "dropout", "reader", "composed", "mlp")] + [("mlp", 600)],
)
def test_the_engine_sums_as_a_shard_does(name: str, rows: int) -> None:
    """Also of a GEMM over more rows than a BLAS adds at once; not of a parameter that several ops read."""
    graph = mlp(64, 64, inputs=100) if name == "mlp" else NETWORKS[name]()
    together, apart = totals(graph, rows, apart=False), totals(graph, rows, apart=True)
    assert together.keys() == apart.keys()
    for parameter, gradient in together.items():
        assert np.abs(gradient).max() > 0
        assert gradient.tobytes() == apart[parameter].tobytes(), parameter


def test_a_parameter_that_several_ops_read_is_summed_otherwise() -> None:
    """Per op first, so `is_bitwise` leaves it out: this test says when it need not any more."""
    together, apart = (totals(NETWORKS["shared"](), 16, apart=apart) for apart in (False, True))
    assert any(gradient.tobytes() != apart[name].tobytes() for name, gradient in together.items())
