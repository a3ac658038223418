"""The same job over 1, 2, 3 and 4 nodes, cut anyhow, gives the same bits; with mini-batches in flight, over one cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from p2pnn import nn
from p2pnn.job.spec import Optimizer, Pin
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh, wait_until


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh"), 4) as found:
        yield found


def tangled(width: int = 8) -> nn.Model:
    """Branches, a value with three consumers, shared parameters, dropout and batch normalization."""
    image = nn.Input("image", (1, 8, 8))
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.BatchNorm(name="bn1")(nn.Conv2d(width, 3, padding=1, name="conv1")(image)))
    shared = nn.Conv2d(width, 3, padding=1, name="shared")
    left = nn.relu(nn.Conv2d(width, 1, name="left")(h))
    right = nn.tanh(nn.Conv2d(width, 3, padding=1, name="right")(h))
    straight = nn.relu(shared(h))
    joined = nn.relu(nn.BatchNorm(name="bn2")(shared(left + right + straight)))
    flat = nn.Dropout(0.2, name="drop")(nn.flatten(nn.MaxPool2d(2)(joined)))
    logits = nn.Linear(4, name="head")(flat)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


CUTS: dict[str, dict[str, Any]] = {
    "two": {"nodes": ("a", "b")},
    "three": {"nodes": ("a", "b", "c")},
    "four": {},
    "interleaved": {"pins": (Pin("conv1", "b"), Pin("left", "a"), Pin("bn2", "c"), Pin("head", "a"))},
    "branches": {"pins": (Pin("left", "b"), Pin("right", "c"), Pin("shared", "d"), Pin("head", "a"))},
}


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(kind="sgd", rate=0.05, clip_norm=0.5),
        Optimizer(kind="adam", rate=1e-3, warmup_steps=3, weight_decay=1e-4),
    ],
    ids=["sgd-clipped", "adam"],
)
def test_every_cut_gives_the_bits_of_one_node(four: Mesh, optimizer: Optimizer) -> None:
    settings = {"optimizer": optimizer, "batch_size": 32, "micro_batches": 4}
    bits: dict[str, str] = {}
    accuracy: dict[str, float] = {}
    cuts = CUTS if optimizer.kind == "sgd" else {name: CUTS[name] for name in ("two", "branches")}
    for cut, where in {"one": {"nodes": ("a",)}, **cuts}.items():
        job = four.submit("a", *make_job(tangled(), blobs_of(), **settings, **where))
        done = four.await_state("a", job, "done")
        bits[cut] = done["result"]["bits"]
        accuracy[cut] = done["result"]["evaluation"][0]["metrics"]["accuracy"]
        used = {share["name"] for share in done["plan"]["nodes"]}
        assert len(used) == {"one": 1, "two": 2, "three": 3, "four": 4, "interleaved": 4, "branches": 4}[cut]
    assert len(set(bits.values())) == 1, bits
    assert len(set(accuracy.values())) == 1, accuracy
    assert accuracy["one"] > 0.8


def test_another_seed_gives_other_bits(four: Mesh) -> None:
    found = set()
    for seed in (1, 2):
        job = four.submit("a", *make_job(tangled(), blobs_of(), seed=seed, epochs=1, nodes=("a",)))
        found.add(four.await_state("a", job, "done")["result"]["bits"])
    assert len(found) == 2


def flying(**settings: Any) -> Any:
    """Some seconds of training with mini-batches in flight, and a checkpoint every few steps."""
    defaults: dict[str, Any] = {"epochs": 5, "batch_size": 16, "micro_batches": 1, "checkpoint_steps": 7}
    defaults |= {"optimizer": Optimizer(kind="adam", rate=1e-3, clip_norm=1.0), "nodes": ("a", "b", "c")}
    return make_job(tangled(), blobs_of(rows=800), **(defaults | settings))


def test_mini_batches_in_flight_give_the_same_bits_through_pauses_and_losses(four: Mesh) -> None:
    whole = four.submit("a", *flying(schedule="async:3", checkpoint_steps=0))
    done = four.await_state("a", whole, "done")
    bits, delays = done["result"]["bits"], done["plan"]["delays"]
    assert max(delays) == 2
    assert done["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.8

    broken = four.submit("a", *flying(schedule="async:3"))
    wait_until(lambda: four.job("a", broken)["step"] > 0, "it has a checkpoint")
    four["a"].post(f"jobs/{broken}/pause")
    paused = four.await_state("a", broken, "paused")
    assert 0 < paused["step"] < paused["steps"]
    four["b"].post(f"jobs/{broken}/resume")
    wait_until(lambda: four.job("b", broken)["step"] > paused["step"], "it has gone on, to another checkpoint")
    os.kill(four["c"].get("node")["executor_pid"], signal.SIGKILL)
    again = four.await_state("a", broken, "done")
    told = [
        event["text"] for event in four["a"].stream(f"jobs/{broken}/events?after=0") if event["kind"] == "recovered"
    ]
    assert "compute process was killed" in told[0]
    assert again["plan"]["delays"] == delays
    assert again["result"]["bits"] == bits


def test_one_mini_batch_in_flight_is_sync_and_so_is_one_node(four: Mesh) -> None:
    found = set()
    for settings in (
        {"schedule": "sync"},
        {"schedule": "async:1"},
        {"schedule": "async:2", "nodes": ("a",)},
    ):
        job = four.submit("a", *flying(epochs=1, checkpoint_steps=0, **settings))
        found.add(four.await_state("a", job, "done")["result"]["bits"])
    assert len(found) == 1
