"""Drawing is repeatable, follows the scores, and what cannot be drawn from is refused."""

from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.errors import JobFailedError, ModelError, UsageError
from p2pnn.job.sampling import LENGTH_MAX, Sampler, check, draw
from p2pnn.job.spec import JobSpec, Sampling
from tests.model.test_text import speller


def job(*, softmax: bool = True, context: int = 4, **changes: Any) -> JobSpec:
    defaults: dict[str, Any] = {"prompt": (0,), "length": 3}
    graph = speller(context, softmax=softmax)
    sampling = Sampling(**(defaults | changes))
    return JobSpec("s", graph, {"tokens": "x"}, kind="sample", batch_size=1, micro_batches=1, sampling=sampling)


def scores(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def test_the_window_moves_with_the_text() -> None:
    sampler = Sampler(job(prompt=(1, 2, 1), length=3, temperature=0.0))
    windows, drawn = [], []
    for best in (2, 0, 1):
        assert not sampler.done
        windows.append(sampler.window())
        drawn.append(sampler.take(scores(*(float(best == c) for c in range(3)))))
    assert drawn == [2, 0, 1]
    assert windows == [(1, 2, 1), (1, 2, 1, 2), (2, 1, 2, 0)]
    assert sampler.done


def test_probabilities_and_their_logarithms_give_the_same_text() -> None:
    chance = np.array([0.2, 0.5, 0.3], np.float32)
    first, second = Sampler(job(length=200)), Sampler(job(length=200, softmax=False))
    texts = [[s.take(found.tobytes()) for _ in range(200)] for s, found in ((first, chance), (second, np.log(chance)))]
    assert texts[0] == texts[1]
    assert set(texts[0]) == {0, 1, 2}


def test_what_is_drawn_follows_the_probabilities_and_the_seed_alone() -> None:
    chance = np.array([0.1, 0.6, 0.3])
    settings = Sampling((0,), temperature=1.0, seed=3)
    drawn = [draw(np.log(chance), settings, number) for number in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, chance, atol=0.03)
    assert drawn[100:] == [draw(np.log(chance), settings, number) for number in range(100, 4000)]
    other = msgspec.structs.replace(settings, seed=4)
    assert drawn[:50] != [draw(np.log(chance), other, number) for number in range(50)]
    cold = msgspec.structs.replace(settings, temperature=0.5)
    sharper = chance**2 / (chance**2).sum()
    counts = np.bincount([draw(np.log(chance), cold, number) for number in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, sharper, atol=0.03)


def test_the_first_numbers_are_fixed() -> None:
    """A text that was written once is written again, by every later version."""
    flat = np.zeros(65)
    assert [draw(flat, Sampling((0,), temperature=1.0, seed=7), n) for n in range(8)] == [7, 5, 27, 11, 10, 8, 44, 27]


def test_top_k_leaves_the_likeliest_and_of_equal_ones_the_first() -> None:
    logarithms = np.array([0.0, 2.0, 2.0, 1.0, 2.0])
    two = {draw(logarithms, Sampling((0,), temperature=5.0, top_k=2, seed=s), 0) for s in range(60)}
    assert two == {1, 2}
    assert {draw(logarithms, Sampling((0,), top_k=1, seed=s), 0) for s in range(20)} == {1}
    assert draw(logarithms, Sampling((0,), temperature=0.0), 0) == 1
    everything = {draw(logarithms, Sampling((0,), temperature=9.0, top_k=99, seed=s), 0) for s in range(90)}
    assert everything == {0, 1, 2, 3, 4}


def test_a_character_without_any_probability_never_comes() -> None:
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.array([0.0, 0.5, 0.0, 0.5, 0.0]))
    assert {draw(logarithms, Sampling((0,), seed=s), 0) for s in range(60)} == {1, 3}


def test_scores_from_peers_are_looked_at() -> None:
    sampler = Sampler(job())
    with pytest.raises(msgspec.ValidationError, match="8 bytes are not the scores of 3 characters"):
        sampler.take(scores(1, 2))
    for wrong in ((np.nan, 0.5, 0.5), (0.0, 0.0, 0.0), (np.inf, 0.1, 0.1)):
        with pytest.raises(JobFailedError, match="NaN or infinite"):
            sampler.take(scores(*wrong))
    assert Sampler(job(softmax=False, temperature=0.0)).take(scores(-np.inf, 3, 2)) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"length": 0}, "length = 0"),
        ({"length": LENGTH_MAX + 1}, "it lies from 1 to 1,000,000"),
        ({"temperature": -0.5}, r"temperature = -0\.5"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1: it lies from 0 to"),
        ({"seed": -2}, "seed = -2"),
        ({"prompt": ()}, "0 tokens to go on from; the model takes 1 to 4"),
        ({"prompt": (0,) * 5}, "5 tokens to go on from"),
        ({"prompt": (3,)}, "is none of the model's 3"),
        ({"prompt": (-1,)}, "is none of the model's 3"),
    ],
)
def test_what_is_no_sampling_job(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(job(**changes))


def test_a_job_must_be_one_of_text() -> None:
    check(job())
    with pytest.raises(UsageError, match="names none"):
        check(msgspec.structs.replace(job(), sampling=None))
    with pytest.raises(UsageError, match="has one row"):
        check(msgspec.structs.replace(job(), batch_size=2))
    with pytest.raises(ModelError, match="its classes are not characters"):
        check(msgspec.structs.replace(job(), graph=speller(classes=())))
