"""Going on with a text, token by token: what the coordinator of a sampling job decides. Pure.

The mesh is given a window, the last tokens of the text (as many as the model's context holds), and answers with the scores
of the character behind it; one is drawn, put behind the text, and so on. What is drawn depends on the scores and on (seed,
number of the token) alone: number n's random number is the first of a Philox stream whose key is the SHA-256 of both, so
that the same job gives the same text wherever it runs, and a text can be gone on with in the middle.

Temperature t divides the logarithms of the probabilities: below 1 likely characters become likelier, 0 takes the likeliest
always. top-k leaves the k likeliest (Fan et al. 2018, §5.1; of equal ones the first).
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import JobFailedError, UsageError
from p2pnn.job.spec import JobSpec, Sampling
from p2pnn.model.text import ports

LENGTH_MAX: Final = 1_000_000
"""Tokens of one job: an hour, at 4 ms each."""


NUMBER_MAX: Final = 2**53 - 1
"""Of a seed: what every reader of JSON keeps exactly, and 64 bits hold."""


class Sampler:
    """The text of one job as it grows. Give `window()` to the mesh, and what it answers to `take`, until `done`."""

    def __init__(self, spec: JobSpec) -> None:
        assert spec.sampling is not None
        self._sampling = spec.sampling
        self._ports = ports(spec.graph)
        self._tokens = list(spec.sampling.prompt)
        self._made = 0

    @property
    def done(self) -> bool:
        return self._made >= self._sampling.length

    def window(self) -> tuple[int, ...]:
        """The last tokens of the text: at least 1, at most the model's context."""
        return tuple(self._tokens[-self._ports.context :])

    def take(self, scores: bytes) -> int:
        """Draw the next token. scores: float32[classes] of the window's last position, little-endian.

        Raises msgspec.ValidationError where they are not that many, JobFailedError where they are not numbers.
        """
        if len(scores) != 4 * self._ports.classes:
            raise msgspec.ValidationError(f"{len(scores)} bytes are not the scores of {self._ports.classes} characters")
        numbers = np.frombuffer(scores, "<f4").astype(np.float64)
        if self._ports.probabilities:
            with np.errstate(divide="ignore"):
                numbers = np.log(np.maximum(numbers, 0.0))
        if not np.isfinite(numbers.max()):
            raise JobFailedError("the model's scores are NaN or infinite: its training diverged; take another run")
        token = draw(numbers, self._sampling, self._made)
        self._made += 1
        self._tokens.append(token)
        del self._tokens[: -self._ports.context]
        return token


def draw(logarithms: NDArray[np.float64], sampling: Sampling, number: int) -> int:
    """One token. logarithms: of the probabilities, up to a constant, float64[classes]; number: counts the tokens from 0."""
    if sampling.temperature == 0:
        return int(np.argmax(logarithms))
    order = np.argsort(-logarithms, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    best = logarithms[order]
    weights = np.exp((best - best[0]) / sampling.temperature)
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, _uniform(sampling.seed, number) * sums[-1], side="right"))
    return int(order[min(place, len(order) - 1)])  # the product may round up to the sum itself


def check(spec: JobSpec) -> None:
    """What a sampling job must be. Raises UsageError, or ModelError for a model that is none of text."""
    sampling, found = spec.sampling, ports(spec.graph)
    if sampling is None:
        raise UsageError("the job is to go on with a text, but names none")
    if not 1 <= sampling.length <= LENGTH_MAX:
        raise UsageError(f"length = {sampling.length}: it lies from 1 to {LENGTH_MAX:,} characters")
    if not 0 <= sampling.temperature < float("inf"):
        raise UsageError(
            f"temperature = {sampling.temperature}: it is a number from 0, for the likeliest always; 1 draws as trained"
        )
    for name, value in (("top_k", sampling.top_k), ("seed", sampling.seed)):
        if not 0 <= value <= NUMBER_MAX:
            raise UsageError(f"{name} = {value}: it lies from 0 to {NUMBER_MAX:,}")
    if not 1 <= len(sampling.prompt) <= found.context:
        raise UsageError(f"{len(sampling.prompt)} tokens to go on from; the model takes 1 to {found.context}")
    if not all(0 <= token < found.classes for token in sampling.prompt):
        raise UsageError(f"a token of the text to go on from is none of the model's {found.classes}")
    if spec.rows_per_micro_batch != 1 or spec.micro_batches != 1:
        raise UsageError("a sampling job has one row")


def _uniform(seed: int, number: int) -> float:
    """A number from 0 to below 1 for token `number`, in steps of 2⁻⁵³."""
    key = hashlib.sha256(f"p2pnn\0sample\0{seed}\0{number}".encode()).digest()[:16]
    raw = np.random.Philox(key=np.frombuffer(key, "<u8")).random_raw()
    return float(int(raw) >> 11) * 2.0**-53
