"""Each optimizer against PyTorch's formulas, written again here in float64, over 100 steps; and its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn.engine.numpy import blas
from p2pnn.job.spec import OPTIMIZERS, Optimizer
from p2pnn.train.optimizers import BLOCK, SLOTS, Combine, Updater, combine, slot_name
from p2pnn.train.rates import rate

Array = NDArray[Any]


def reference(spec: Optimizer, w: Array, gradients: list[Array], decay: bool, scale: float) -> Array:
    """torch.optim's documentation, in float64."""
    w = w.astype(np.float64)
    v, m, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    decoupled = spec.kind == "adamw"
    for step, gradient in enumerate(gradients):
        lr = rate(spec, step, len(gradients))
        g = gradient.astype(np.float64) * scale
        if decay and decoupled:
            w = w - lr * spec.weight_decay * w
        elif decay:
            g = g + spec.weight_decay * w
        if spec.kind in ("adam", "adamw"):
            m = spec.beta1 * m + (1 - spec.beta1) * g
            s = spec.beta2 * s + (1 - spec.beta2) * g**2
            m_hat, s_hat = m / (1 - spec.beta1 ** (step + 1)), s / (1 - spec.beta2 ** (step + 1))
            w = w - lr * m_hat / (np.sqrt(s_hat) + spec.epsilon)
        elif spec.kind == "adagrad":
            s = s + g**2
            w = w - lr * g / (np.sqrt(s) + spec.epsilon)
        elif spec.kind == "rmsprop":
            s = spec.smoothing * s + (1 - spec.smoothing) * g**2
            w = w - lr * g / (np.sqrt(s) + spec.epsilon)
        elif spec.kind == "sgd":
            w = w - lr * g
        else:
            v = spec.momentum * v + g
            w = w - lr * (g + spec.momentum * v if spec.kind == "nesterov" else v)
    return w


COMBINE = pytest.mark.parametrize("add", [combine, blas.combine], ids=["numpy", "engine"])


def train(
    spec: Optimizer, w: Array, gradients: list[Array], decay: bool = True, scale: float = 1.0, add: Combine = combine
) -> Array:
    updater, w = Updater(spec, add), w.copy()
    slots = {name: np.zeros_like(w) for name in updater.slots}
    for step, gradient in enumerate(gradients):
        kept = gradient.copy()
        lr = rate(spec, step, len(gradients))
        updater.update(w, gradient, slots, rate=lr, step=step, scale=scale, decay=decay)
        assert np.array_equal(gradient, kept)
    return w


def problem(shape: tuple[int, ...] = (7, 11), steps: int = 100) -> tuple[Array, list[Array]]:
    random = np.random.default_rng(5)
    w = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)  # as weights are: 1e-6 is many ulps
    return w, [random.standard_normal(shape, dtype=np.float32) for _ in range(steps)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@COMBINE
def test_hundred_steps_follow_the_formulas(
    kind: str, weight_decay: float, decay: bool, scale: float, add: Combine
) -> None:
    spec = Optimizer(kind, rate=1e-3, weight_decay=weight_decay, schedule="cosine", warmup_steps=5)
    w, gradients = problem()
    expected = reference(spec, w, gradients, decay, scale)
    assert np.abs(train(spec, w, gradients, decay, scale, add) - expected).max() < 1e-6


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torch_does_the_same(kind: str) -> None:
    torch = pytest.importorskip("torch")
    spec = Optimizer(kind, rate=1e-2, weight_decay=0.1, schedule="constant")
    w, gradients = problem()
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    cls, more = {
        "momentum": (torch.optim.SGD, {"momentum": 0.9}),
        "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
        "rmsprop": (torch.optim.RMSprop, {}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }.get(kind, (torch.optim.SGD, {}))
    theirs = cls([parameter], lr=1e-2, weight_decay=0.1, **more)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        theirs.step()
    assert np.abs(parameter.detach().numpy() - train(spec, w, gradients)).max() < 5e-6


@COMBINE
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_bits_do_not_depend_on_where_blocks_begin(kind: str, add: Combine) -> None:
    spec = Optimizer(kind, rate=1e-2, weight_decay=0.1)
    w, gradients = problem((2 * BLOCK + 77,), 3)
    whole = train(spec, w, gradients, add=add)
    cut = 12_345
    first = train(spec, w[:cut].copy(), [g[:cut].copy() for g in gradients], add=add)
    rest = train(spec, w[cut:].copy(), [g[cut:].copy() for g in gradients], add=add)
    assert whole.tobytes() == first.tobytes() + rest.tobytes()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_second_buffer_gets_the_bits_that_an_update_in_place_gives(kind: str, weight_decay: float) -> None:
    spec = Optimizer(kind, rate=0.01, weight_decay=weight_decay)
    w, gradients = problem((BLOCK + 3,), steps=5)
    updater = Updater(spec)
    slots = {name: np.zeros_like(w) for name in updater.slots}
    versions = [w.copy(), np.full_like(w, np.nan)]
    for step, gradient in enumerate(gradients):
        old, new = versions[step % 2], versions[(step + 1) % 2]
        kept = old.copy()
        updater.update(old, gradient, slots, rate=rate(spec, step, 5), step=step, scale=0.5, out=new)
        np.testing.assert_array_equal(old, kept)
    np.testing.assert_array_equal(versions[1], train(spec, w, gradients, scale=0.5))


def test_every_kind_names_its_slots() -> None:
    assert set(SLOTS) == set(OPTIMIZERS)
    assert slot_name("momentum", "conv1/weight") == "optimizer/momentum/conv1/weight"
    with pytest.raises(ValueError, match="no optimizer 'adadelta'"):
        Updater(Optimizer("adadelta"))
