"""The same job over 1, 2, 3 and 4 nodes, cut anyhow, gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from p2pnn import nn
from p2pnn.job.spec import Optimizer, Pin
from tests.integration.mesh import Mesh, blobs_of, make_job, mesh


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
