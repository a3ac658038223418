"""Optimizers: update a parameter from its gradient, in place or into a second buffer, block by block.

With g the gradient (scaled by clipping, plus weight_decay · w for all but AdamW), α the rate and t = step + 1:

    sgd        w ← w − α g
    momentum   v ← μ v + g;  w ← w − α v
    nesterov   v ← μ v + g;  w ← w − α (g + μ v)
    adagrad    s ← s + g²;  w ← w − α g / (√s + ε)                               (Duchi et al. 2011)
    rmsprop    s ← ρ s + (1 − ρ) g²;  w ← w − α g / (√s + ε)                     (Hinton 2012, lecture 6e)
    adam       m ← β₁ m + (1 − β₁) g;  s ← β₂ s + (1 − β₂) g²
               w ← w − α/(1 − β₁ᵗ) · m / (√s / √(1 − β₂ᵗ) + ε)                  (Kingma & Ba 2015)
    adamw      w ← w − α λ w, then as adam                                       (Loshchilov & Hutter 2019)

The conventions are PyTorch's: no dampening, ε behind the (corrected) root, Adagrad's squares start at 0 (Keras: v = μv − αg,
ε = 1e-7, squares from 0.1); RMSProp is the plain one, without momentum. Weight decay skips parameters that say so (biases,
normalization).

Nearly all of it are sums of two arrays, y ← α·x + β·y, made in one pass each by the engine's `combine`: what multiplies a
gradient or a parameter (the rate, clipping, decay) goes into α and β. It is element by element in float32, so the bits do not
depend on who owns what. Blocks keep the work in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pnn.job.spec import Optimizer

BLOCK: Final = 65_536
"""256 KiB per array, so that the five of Adam fit into a second-level cache of 2 MiB; smaller blocks pay more for their calls."""

SLOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "sgd": (),
    "momentum": ("momentum",),
    "nesterov": ("momentum",),
    "adagrad": ("square",),
    "rmsprop": ("square",),
    "adam": ("mean", "square"),
    "adamw": ("mean", "square"),
}
"""What each kind keeps beside a parameter: float32 arrays of its shape, zero at the start."""

Flat = NDArray[Any]

Combine = Callable[[float, Flat, float, Flat], None]
"""(α, x, β, y): y ← α·x + β·y in place, for flat arrays of one length."""


def combine(alpha: float, x: Flat, beta: float, y: Flat) -> None:
    """y ← α·x + β·y by numpy alone. β = 0 overwrites y, whatever it held."""
    if beta == 0.0:
        np.multiply(x, x.dtype.type(alpha), out=y)
        return
    if beta != 1.0:
        np.multiply(y, beta, out=y)
    np.add(y, x * x.dtype.type(alpha), out=y)


def slot_name(slot: str, parameter: str) -> str:
    """The name of an optimizer's array in checkpoints."""
    return f"optimizer/{slot}/{parameter}"


class Updater:
    """Applies one kind of optimizer. Holds two scratch blocks and no state; the slots' arrays belong to the caller.

    combine: an engine's, as far as it has a faster one. Its bits are part of the engine's fingerprint.
    """

    def __init__(self, optimizer: Optimizer, combine: Combine = combine) -> None:
        if optimizer.kind not in SLOTS:
            raise ValueError(f"there is no optimizer {optimizer.kind!r}")
        self._optimizer = optimizer
        self._combine = combine
        self.slots = SLOTS[optimizer.kind]
        self._gradient = np.empty(BLOCK, np.float32)
        self._other = np.empty(BLOCK, np.float32)

    def update(
        self,
        parameter: Flat,
        gradient: Flat,
        slots: Mapping[str, Flat],
        *,
        rate: float,
        step: int,
        scale: float = 1.0,
        decay: bool = True,
        out: Flat | None = None,
    ) -> None:
        """One step, in place on `slots` and, without `out`, on `parameter`; the gradient is only read.

        All arrays are C-contiguous float32 of one shape. step: the job's, from 0. scale: by clipping. decay: whether
        weight decay applies to this parameter. out: where the new parameter goes if the old one is to stay as it is; the
        bits are the same.
        """
        w, g = parameter.reshape(-1), gradient.reshape(-1)
        new = w if out is None else out.reshape(-1)
        state = [slots[name].reshape(-1) for name in self.slots]
        weight_decay = self._optimizer.weight_decay if decay else 0.0
        for start in range(0, w.size, BLOCK):
            block = slice(start, min(start + BLOCK, w.size))
            self._block(w[block], g[block], [s[block] for s in state], new[block], rate, step, scale, weight_decay)

    def _block(
        self,
        w: Flat,
        g: Flat,
        state: list[Flat],
        new: Flat,
        rate: float,
        step: int,
        scale: float,
        weight_decay: float,
    ) -> None:
        kind, mu, add = self._optimizer.kind, self._optimizer.momentum, self._combine
        if kind in ("momentum", "nesterov"):
            add(scale, g, mu, state[0])
            if weight_decay:
                add(weight_decay, w, 1.0, state[0])
        elif kind in ("adagrad", "rmsprop"):
            g = self._decayed(w, g, scale, weight_decay)
            self._squares(g, state[0], 1.0 if kind == "adagrad" else self._optimizer.smoothing)
        elif kind == "adam":
            self._moments(self._decayed(w, g, scale, weight_decay), state[0], state[1])
        elif kind == "adamw":
            self._moments(self._decayed(w, g, scale, 0.0), state[0], state[1])
        if new is not w:
            np.copyto(new, w)
        shrink = 1.0 - rate * weight_decay
        if kind == "sgd":
            add(-rate * scale, g, shrink, new)
        elif kind == "momentum":
            add(-rate, state[0], 1.0, new)
        elif kind == "nesterov":
            add(-rate * scale, g, shrink, new)
            add(-rate * mu, state[0], 1.0, new)
        elif kind in ("adagrad", "rmsprop"):
            root = self._root(state[0], self._optimizer.epsilon)
            add(-rate, np.divide(g, root, out=root), 1.0, new)
        else:
            self._adam(state[0], state[1], new, rate, step, shrink if kind == "adamw" else 1.0)

    def _decayed(self, w: Flat, g: Flat, scale: float, weight_decay: float) -> Flat:
        """scale · g + weight_decay · w: the gradient itself where that is all, else scratch."""
        if scale == 1.0 and not weight_decay:
            return g
        made = np.multiply(g, scale, out=self._gradient[: g.size])
        if weight_decay:
            self._combine(weight_decay, w, 1.0, made)
        return made

    def _moments(self, g: Flat, m: Flat, s: Flat) -> None:
        """Adam's running means of g and g²."""
        beta1 = self._optimizer.beta1
        self._combine(1.0 - beta1, g, beta1, m)
        self._squares(g, s, self._optimizer.beta2)

    def _squares(self, g: Flat, s: Flat, kept: float) -> None:
        """s ← kept · s + (1 − kept) · g²; the sum of all squares for kept = 1."""
        self._combine(1.0 - kept if kept < 1.0 else 1.0, np.multiply(g, g, out=self._other[: g.size]), kept, s)

    def _root(self, s: Flat, epsilon: float) -> Flat:
        """√s + ε, in scratch."""
        root = np.sqrt(s, out=self._other[: s.size])
        return np.add(root, epsilon, out=root)

    def _adam(self, m: Flat, s: Flat, w: Flat, rate: float, step: int, shrink: float) -> None:
        """w ← shrink · w − α/(1 − β₁ᵗ) · m / (√s / √(1 − β₂ᵗ) + ε), with √(1 − β₂ᵗ) taken out of the fraction."""
        spec = self._optimizer
        root = math.sqrt(1.0 - spec.beta2 ** (step + 1))
        other = self._root(s, spec.epsilon * root)
        np.divide(m, other, out=other)
        self._combine(-rate * root / (1.0 - spec.beta1 ** (step + 1)), other, shrink, w)
