"""The learning rate of each step: warm-up, then a schedule.

    warm-up    rate · (step + 1) / warmup_steps             for step < warmup_steps
    constant   rate
    step       rate · gamma^⌊t / step_size⌋
    cosine     rate · ½ (1 + cos(π t / T))                  0 when the last step is done (Loshchilov & Hutter 2017, eq. 5)

t counts the steps after the warm-up and T is how many there will be. Rates are Python floats, computed alike on every node.
"""

from __future__ import annotations

import math

from p2pnn.job.spec import Optimizer


def rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of a run of `steps` steps. Raises ValueError for an unknown schedule."""
    if step < optimizer.warmup_steps:
        return optimizer.rate * (step + 1) / optimizer.warmup_steps
    after = step - optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.rate
    if optimizer.schedule == "step":
        return float(optimizer.rate * optimizer.gamma ** (after // max(optimizer.step_size, 1)))
    if optimizer.schedule == "cosine":
        part = min(after / max(steps - optimizer.warmup_steps, 1), 1.0)
        return optimizer.rate * 0.5 * (1.0 + math.cos(math.pi * part))
    raise ValueError(f"there is no schedule {optimizer.schedule!r}")
