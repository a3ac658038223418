"""A shard's optimizer against torch's documented formulas in float64, against torch, and bit for bit against whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn.job.spec import OPTIMIZERS, Optimizer
from p2pnn.ps.optimizers import OUTER, ShardOptimizer
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Flat, Space
from p2pnn.train.optimizers import Updater
from p2pnn.train.rates import rate
from tests.ps.models import mlp

SPACE = Space.of(mlp(6, 7))
STEPS = 100


def problem() -> tuple[Flat, list[Flat]]:
    random = np.random.default_rng(5)
    w = random.standard_normal(SPACE.size, dtype=np.float32) * np.float32(0.1)
    return w, [random.standard_normal(SPACE.size, dtype=np.float32) for _ in range(STEPS)]


def on_shards(spec: Optimizer, count: int) -> Flat:
    """The problem, trained on that many shards."""
    w, gradients = problem()
    sharding = cut(SPACE, count)
    buffers = sharding.split(w)
    optimizers = [ShardOptimizer(spec, s.size, s.decay, steps=STEPS) for s in sharding.shards]
    for step, gradient in enumerate(gradients):
        for buffer, optimizer, part in zip(buffers, optimizers, sharding.split(gradient), strict=True):
            kept = part.copy()
            optimizer.apply(buffer, part, update=step, rate=optimizer.rate(step))
            assert np.array_equal(part, kept)
    return sharding.join(buffers)


def decay_mask() -> NDArray[np.float64]:
    return np.concatenate([np.full(e.size, float(e.decay)) for e in SPACE.entries])


def documented(spec: Optimizer) -> NDArray[np.float64]:
    """The algorithms that torch.optim's pages of SGD, Adagrad, RMSprop, Adam and AdamW print, in float64."""
    start, gradients = problem()
    w = start.astype(np.float64)
    v, m, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    decay = spec.weight_decay * decay_mask()
    for t, gradient in enumerate(gradients, start=1):
        lr = rate(spec, t - 1, STEPS)
        g: NDArray[Any] = gradient.astype(np.float64)
        if spec.kind == "adamw":
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if spec.kind == "sgd":
            w = w - lr * g
        elif spec.kind in ("momentum", "nesterov"):
            v = g if t == 1 else spec.momentum * v + g  # torch's first step
            w = w - lr * (g + spec.momentum * v if spec.kind == "nesterov" else v)
        elif spec.kind == "adagrad":
            s = s + g * g
            w = w - lr * g / (np.sqrt(s) + spec.epsilon)
        elif spec.kind == "rmsprop":
            s = spec.smoothing * s + (1 - spec.smoothing) * g * g
            w = w - lr * g / (np.sqrt(s) + spec.epsilon)
        else:
            m = spec.beta1 * m + (1 - spec.beta1) * g
            s = spec.beta2 * s + (1 - spec.beta2) * g * g
            w = w - lr * (m / (1 - spec.beta1**t)) / (np.sqrt(s / (1 - spec.beta2**t)) + spec.epsilon)
    return w


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_hundred_updates_follow_the_formulas(kind: str, weight_decay: float, schedule: str) -> None:
    spec = Optimizer(kind, 1e-3, weight_decay=weight_decay, schedule=schedule, warmup_steps=5, step_size=30)
    assert np.abs(on_shards(spec, 3) - documented(spec)).max() < 1e-6


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_torch_does_the_same(kind: str, weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    spec = Optimizer(kind, 1e-3, weight_decay=weight_decay, schedule="constant")
    cls, more = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": 0.9}),
        "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
        "rmsprop": (torch.optim.RMSprop, {}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }[kind]
    w, gradients = problem()
    tensors = {e.name: torch.nn.Parameter(torch.from_numpy(w[e.start : e.stop].copy())) for e in SPACE.entries}
    groups = [
        {"params": [tensors[e.name] for e in SPACE.entries if e.decay], "weight_decay": weight_decay},
        {"params": [tensors[e.name] for e in SPACE.entries if not e.decay], "weight_decay": 0.0},
    ]
    theirs = cls(groups, lr=1e-3, **more)
    for gradient in gradients:
        for e in SPACE.entries:
            tensors[e.name].grad = torch.from_numpy(gradient[e.start : e.stop].copy())
        theirs.step()
    found = np.concatenate([tensors[e.name].detach().numpy() for e in SPACE.entries])
    assert np.abs(on_shards(spec, 3) - found).max() < 1e-6


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_shards_give_the_bits_that_whole_parameters_give(kind: str) -> None:
    spec = Optimizer(kind, 1e-2, weight_decay=0.1)
    w, gradients = problem()
    updater = Updater(spec)
    slots = {name: np.zeros_like(w) for name in updater.slots}
    for step, gradient in enumerate(gradients):
        for e in SPACE.entries:
            run = slice(e.start, e.stop)
            updater.update(
                w[run],
                gradient[run],
                {name: slot[run] for name, slot in slots.items()},
                rate=rate(spec, step, STEPS),
                step=step,
                decay=e.decay,
            )
    for count in (1, 2, 5):
        assert on_shards(spec, count).tobytes() == w.tobytes()


def test_a_second_buffer_gets_the_same_bits_and_the_first_stays() -> None:
    spec = Optimizer("adagrad", 1e-2, weight_decay=0.1)
    (shard,) = cut(SPACE, 1).shards
    w, gradients = problem()
    here, there = (ShardOptimizer(spec, shard.size, shard.decay, steps=STEPS) for _ in range(2))
    old, new, kept = w.copy(), np.full_like(w, np.nan), w.copy()
    there.apply(old, gradients[0], update=0, rate=0.1, scale=0.5, out=new)
    here.apply(w, gradients[0], update=0, rate=0.1, scale=0.5)
    assert np.array_equal(old, kept)
    assert np.array_equal(new, w)


def test_dilocos_outer_step() -> None:
    w, gradients = problem()
    (shard,) = cut(SPACE, 1).shards
    optimizer = ShardOptimizer(OUTER, shard.size, shard.decay)
    expected, v = w.astype(np.float64), np.zeros(w.size)
    for update, delta in enumerate(gradients[:10]):
        optimizer.apply(w, delta, update=update, rate=optimizer.rate(update), scale=0.25)
        v = 0.9 * v + delta / 4
        expected = expected - 0.7 * (delta / 4 + 0.9 * v)
    assert np.abs(w - expected).max() < 2e-6
