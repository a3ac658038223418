"""The optimizer of one shard: `train.optimizers` over a flat buffer, with its state beside it.

The formulas, their conventions and the blocks are those of every other job (`train.optimizers`, `train.rates`); this module
only says where weight decay applies: a shard is one array in which biases and normalization lie between weights, so it is
updated by runs of elements, each with its own answer. All of it is element by element, so a parameter gets the same bits as
in a job of one process, wherever its shard begins.

Downpour SGD's Adagrad (Dean et al. 2012, §4.1) is kind `adagrad`: η_i = γ / √(Σ Δw_i²), γ the rate.

`local:H` is DiLoCo (Douillard et al. 2023, Algorithm 1): each worker takes H steps of its own from the shard's parameters θ to
θ_k, the *outer gradient* is Δ = θ − mean θ_k, and the shard takes one step of Nesterov's momentum along Δ, with the paper's
rate 0.7 and momentum 0.9 (§3; in PyTorch's convention, as `nesterov` is here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from p2pnn.job.spec import Optimizer
from p2pnn.ps.space import Flat
from p2pnn.train import rates
from p2pnn.train.optimizers import Combine, Updater, combine

OUTER: Final = Optimizer(kind="nesterov", rate=0.7, momentum=0.9, schedule="constant")
"""DiLoCo's outer optimizer."""

Decay = Sequence[tuple[int, int, bool]]
"""(start, stop, whether weight decay applies), end to end (`sharding.ShardRange.decay`)."""


class ShardOptimizer:
    """state: slot → float32[size], zero at the start; it is saved and loaded with the parameters.

    decay: over the buffer of `size` elements. steps: how many updates the run will make, which schedules that end need.
    combine: an engine's, as far as it has a faster one.
    """

    def __init__(self, spec: Optimizer, size: int, decay: Decay, *, steps: int = 0, combine: Combine = combine) -> None:
        self._spec = spec
        self._steps = steps
        # Without decay nothing tells one run from another.
        self._runs = (
            [(slice(a, b), decays) for a, b, decays in decay] if spec.weight_decay else [(slice(0, size), False)]
        )
        self._updater = Updater(spec, combine)
        self.state: dict[str, Flat] = {slot: np.zeros(size, np.float32) for slot in self._updater.slots}
        self._views = [{slot: a[run] for slot, a in self.state.items()} for run, _ in self._runs]

    def rate(self, update: int) -> float:
        """The scheduled rate of update number `update`, from 0."""
        return rates.rate(self._spec, update, self._steps)

    def apply(self, w: Flat, g: Flat, *, update: int, rate: float, scale: float = 1.0, out: Flat | None = None) -> None:
        """One update of all elements, in place on the state and, without `out`, on w; g is only read.

        w, g, out: float32[size]. update: from 0; Adam's correction counts it. scale: what g is multiplied by.
        """
        for (run, decays), state in zip(self._runs, self._views, strict=True):
            self._updater.update(
                w[run],
                g[run],
                state,
                rate=rate,
                step=update,
                scale=scale,
                decay=decays,
                out=None if out is None else out[run],
            )
