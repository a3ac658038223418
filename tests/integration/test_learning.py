"""Runs that do not learn, on real daemons: each says why, by name, and runs that learn say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2pnn import nn
from p2pnn.data.batches import epoch_order
from p2pnn.job.spec import DataParallel, Optimizer
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh
from tests.support.marks import long

ENDLESS = 5000
"""Epochs, of ten steps each: of runs that are cancelled when they have said what is wanted."""

IDLE_S = 60.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh"), 3) as found:
        yield found


def net(*, scale: float | None = None, shift: float = 0.0) -> nn.Model:
    """scale: of the first weights. shift: what is taken from the second layer before it is rectified."""
    image, label = nn.Input("image", (1, 8, 8)), nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Linear(24, scale=scale, name="one")(nn.flatten(image)), name="relu_one")
    h = nn.Linear(16, scale=scale, name="two")(h)
    h = nn.relu(h - shift if shift else h, name="relu_two")
    logits = nn.Linear(4, scale=scale, name="three")(h)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


def job(model: nn.Model, way: str, columns: Any = None, **settings: Any) -> Any:
    fields: dict[str, Any] = {"batch_size": 32, "micro_batches": 2, "epochs": ENDLESS} | settings
    fields.setdefault("optimizer", Optimizer(schedule="constant"))
    if way == "model":
        fields |= {"nodes": ("a", "b")}
    else:
        fields |= {"parallel": "data", "data": DataParallel(way, workers=2, shards=2)}
    return make_job(model, blobs_of() if columns is None else columns, **fields)


def warnings(m: Mesh, number: str, *wanted: str) -> list[str]:
    """Follow the job until it has warned of all of these, and cancel it; or to its end."""
    found: list[str] = []
    for event in m["a"].stream(f"jobs/{number}/events?after=0", IDLE_S):
        if event["kind"] == "warning":
            found.append(event["text"])
            if wanted and all(any(words in text for text in found) for words in wanted):
                m["a"].post(f"jobs/{number}/cancel")
                m.await_state("a", number, "cancelled")
                break
    assert all(any(words in text for text in found) for words in wanted), (wanted, found)
    return found


@pytest.mark.parametrize("way", ["model", long("sync"), long("async")])
def test_weights_that_start_at_zero(three: Mesh, way: str) -> None:
    told = warnings(three, three.submit("a", *job(net(scale=0.0), way)), "zero gradients", "one/weight", "one/bias")
    assert not any("three/bias" in text for text in told), "which learns how often each class is"


@pytest.mark.parametrize("way", [long("model"), "async"])
def test_a_rectifier_that_nothing_gets_through(three: Mesh, way: str) -> None:
    told = warnings(
        three,
        three.submit("a", *job(net(shift=1e4), way)),
        "dead activations: all outputs of relu_two behind two have been zero since step ",
    )
    assert not any("relu_one" in text for text in told)


@pytest.mark.parametrize("way", [long("model"), "sync"])
def test_a_loss_that_stays_where_it_was(three: Mesh, way: str) -> None:
    none = Optimizer(rate=0.0, schedule="constant")
    [told] = warnings(three, three.submit("a", *job(net(), way, optimizer=none)), "since the learning rate is 0")
    assert told.startswith("not learning: the loss stays at ")


def test_plain_sgd_whose_updates_are_part_of_its_backward_passes(three: Mesh) -> None:
    """No array holds the weights' gradients then."""
    sgd = Optimizer("sgd", rate=0.1, schedule="constant")
    of = job(net(scale=0.0), "model", optimizer=sgd, micro_batches=1)
    told = warnings(three, three.submit("a", *of), "one/weight", "one/bias")
    assert not any("three/bias" in text for text in told)


def test_a_worker_with_bad_rows_is_set_aside_by_name_and_the_run_goes_on(three: Mesh) -> None:
    """Of three batches in a row, worker 1's share, which is the second half, holds no numbers."""
    columns = blobs_of(rows=2000)
    spec, _ = job(net(), "sync", columns, epochs=1)
    order = epoch_order(spec.train, spec.seed, 0)
    for batch in (5, 6, 7):
        columns["image"][order[32 * batch + 16 : 32 * (batch + 1)]] = np.nan
    number = three.submit("a", *job(net(), "sync", columns, epochs=1))
    told = warnings(three, number)
    found = three.await_state("a", number, "done")
    bad = found["plan"]["nodes"][found["plan"]["replicas"][1]["nodes"][0]]["name"]
    assert any(
        text.startswith(f"worker {bad} is set aside, and the run goes on without it") and "NaN or infinite" in text
        for text in told
    )
    assert any(text.startswith(f"the loss on node {bad} is NaN or infinite since step 6;") for text in told)
    assert np.isfinite(found["result"]["evaluation"][0]["loss"])


def test_losses_that_are_no_numbers_are_told_by_node_before_the_run_ends_for_them(three: Mesh) -> None:
    columns = blobs_of()
    columns["image"] *= np.float32(np.nan)
    number = three.submit("a", *job(net(), "async", columns, validation=None, test=None))
    told = warnings(three, number)
    found = three.await_state("a", number, "failed")
    assert "were refused: its gradient has NaN or infinite elements" in found["reason"]
    assert any("the loss on node " in text and " is NaN or infinite since step " in text for text in told)


@pytest.mark.parametrize("way", ["model", long("sync"), long("async"), long("local:4")])
def test_runs_that_learn_say_nothing(three: Mesh, way: str) -> None:
    warm = Optimizer(rate=1e-3, warmup_steps=40, schedule="constant")
    number = three.submit("a", *job(net(), way, epochs=40, optimizer=warm))
    assert warnings(three, number) == []
    found = three.await_state("a", number, "done")
    assert found["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.9
