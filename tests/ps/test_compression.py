"""Codecs: exact sizes, rounding against references, what is not finite; feedback loses nothing; deltas follow, or start anew."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from p2pnn.errors import UsageError
from p2pnn.ps.compression import HUGE, INT8_BLOCK, TINY, TOP_BLOCK, Codec, Deltas, Feedback, Mirror, codec
from p2pnn.ps.space import Flat

LOSSY = ("bf16", "int8", "top:0.3")
ALL = ("float32", *LOSSY)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANY = st.floats(width=32)
MODERATE = st.floats(-(2.0**100), 2.0**100, width=32)


def arrays(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Flat]:
    return hnp.arrays(np.float32, st.integers(1, 600), elements=elements)


def through(how: Codec, x: Flat) -> Flat:
    data = np.full(how.byte_count(x.size), 0xAA, np.uint8)
    kept = x.copy()
    how.encode(x, data)
    assert x.tobytes() == kept.tobytes()
    out = np.full(x.size, 7, np.float32)
    how.decode(data, out)
    return out


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("float32", 1000, 4000),
        ("bf16", 1001, 2002),
        ("int8", 256, 260),
        ("int8", 257, 265),
        ("int8", 1 << 20, (1 << 20) + 4 * 4096),
        ("top:0.01", 65_536, 6 * 656),
        ("top:0.01", 65_536 + 10, 6 * 656 + 6),
        ("top:1", 10, 60),
    ],
)
def test_sizes_are_exact(name: str, count: int, expected: int) -> None:
    assert codec(name).byte_count(count) == expected


@given(arrays(ANY))
def test_bfloat16_rounds_as_ml_dtypes_does(x: Flat) -> None:
    found = through(codec("bf16"), x)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    clipped = np.isfinite(x) & np.isinf(expected)
    expected[clipped] = np.copysign(np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max), x[clipped])
    assert np.array_equal(found, expected, equal_nan=True)


def test_bfloat16_over_all_upper_halves() -> None:
    """Every exponent and sign, with lower halves on both sides of a tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        test_bfloat16_rounds_as_ml_dtypes_does.hypothesis.inner_test((upper | np.uint32(lower)).view(np.float32))


def quantized(x: Flat) -> NDArray[np.float64]:
    """int8 in plain words, one block at a time."""
    found = []
    for start in range(0, x.size, INT8_BLOCK):
        block = x[start : start + INT8_BLOCK]
        scale = min(np.float32(np.abs(block).max() / np.float32(127)), HUGE)
        if np.abs(block).max() < TINY:
            found.append(np.zeros(block.size))
        else:
            found.append((np.clip(np.rint(block / scale), -127, 127).astype(np.float32) * scale).astype(np.float64))
    return np.concatenate(found)


@given(arrays(FLOAT32))
def test_int8_is_the_nearest_of_255_steps(x: Flat) -> None:
    found = through(codec("int8"), x)
    assert np.array_equal(found, quantized(x))
    for start in range(0, x.size, INT8_BLOCK):
        block = slice(start, start + INT8_BLOCK)
        largest = float(np.abs(x[block]).max())
        bound = largest / 254 * (1 + 1e-5) if largest >= TINY else largest
        assert np.abs(found[block].astype(np.float64) - x[block].astype(np.float64)).max() <= bound


def test_int8_over_many_blocks() -> None:
    x = np.random.default_rng(2).standard_normal(40_000, np.float32)
    assert np.array_equal(through(codec("int8"), x), quantized(x))


@given(arrays(FLOAT32), st.sampled_from([0.01, 0.3, 1.0]))
def test_top_k_sends_the_largest_as_they_are(x: Flat, fraction: float) -> None:
    found = through(codec(f"top:{fraction}"), x)
    kept = int(np.ceil(fraction * x.size))
    sent = found != 0
    assert np.array_equal(found[sent], x[sent])
    assert sent.sum() == min(kept, np.count_nonzero(x))
    if not sent.all():
        assert np.abs(x[~sent]).max() <= (np.abs(x[sent]).min() if sent.any() else 0)


def test_top_k_of_several_blocks_and_of_hostile_places() -> None:
    x = np.random.default_rng(3).standard_normal(TOP_BLOCK + 100, np.float32)
    how = codec("top:0.5")
    found = through(how, x)
    assert np.count_nonzero(found[:TOP_BLOCK]) == TOP_BLOCK // 2
    assert np.count_nonzero(found[TOP_BLOCK:]) == 50
    how.decode(np.full(how.byte_count(100), 0xFF, np.uint8), np.empty(100, np.float32))


@given(arrays(FLOAT32), st.sampled_from(ALL))
def test_what_was_rounded_is_not_rounded_again(x: Flat, name: str) -> None:
    how = codec(name)
    once = through(how, x)
    twice = through(how, once)
    if name == "int8":  # the scale itself may move by a last place
        np.testing.assert_allclose(twice, once, rtol=5e-7, atol=float(TINY))
    else:
        assert twice.tobytes() == (once + np.float32(0)).tobytes() or np.array_equal(twice, once)


@given(st.lists(hnp.arrays(np.float32, 300, elements=MODERATE), min_size=1, max_size=5), st.sampled_from(LOSSY))
def test_what_was_sent_and_what_is_owed_is_what_was_given(steps: list[Flat], name: str) -> None:
    feedback, how = Feedback(codec(name), 300), codec(name)
    data, sent = np.empty(how.byte_count(300), np.uint8), np.empty(300, np.float32)
    for x in steps:
        given_ = x + feedback.residual  # the one sum that rounds
        feedback.encode(x, data)
        how.decode(data, sent)
        owed = feedback.residual.astype(np.float64)
        apart = np.abs(sent.astype(np.float64) + owed - given_.astype(np.float64))
        if name == "int8":
            assert (apart <= np.abs(owed) * 2.0**-23).all()
        else:
            assert not apart.any()


@pytest.mark.parametrize("name", LOSSY)
def test_nothing_is_lost_in_the_long_run(name: str) -> None:
    """Sums of 200 pushes: with feedback what arrived is off by one residual at most, without it by much more."""
    random = np.random.default_rng(4)
    total, arrived, without = np.zeros(3000), np.zeros(3000), np.zeros(3000)
    feedback, how = Feedback(codec(name), 3000), codec(name)
    data = np.empty(how.byte_count(3000), np.uint8)
    drift = random.standard_normal(3000, np.float32)
    for _ in range(200):
        x = drift + np.float32(0.1) * random.standard_normal(3000, np.float32)
        out = np.empty(3000, np.float32)
        feedback.encode(x, data)
        how.decode(data, out)
        total, arrived, without = total + x, arrived + out, without + through(how, x)
    np.testing.assert_allclose(arrived + feedback.residual, total, atol=1e-3)
    assert np.abs(arrived - total).mean() < 0.2 * np.abs(without - total).mean()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_arrives_as_such_and_leaves_the_residual(name: str, bad: float) -> None:
    feedback, how = Feedback(codec(name), 700), codec(name)
    data, out = np.empty(how.byte_count(700), np.uint8), np.empty(700, np.float32)
    x = np.random.default_rng(5).standard_normal(700, np.float32)
    feedback.encode(x, data)
    owed = feedback.residual.copy()
    x[300] = bad
    feedback.encode(x, data)
    how.decode(data, out)
    assert not np.isfinite(out).all()
    assert np.array_equal(feedback.residual, owed)


@pytest.mark.parametrize("name", ALL)
def test_a_mirror_follows_bit_for_bit_and_comes_close(name: str) -> None:
    random = np.random.default_rng(6)
    sender, mirror, how = Deltas(codec(name), 500), Mirror(codec(name), 500), codec(name)
    data = np.empty(how.byte_count(500), np.uint8)
    w = random.standard_normal(500, np.float32)
    assert not sender.follows(mirror.number)
    whole = sender.restart(w)
    assert mirror.restart(whole, sender.number)
    assert np.array_equal(mirror.values, w)
    for _ in range(50):
        w = w + np.float32(0.01) * random.standard_normal(500, np.float32)
        assert sender.follows(mirror.number)
        sender.encode(w, data)
        assert mirror.add(data, sender.number)
        assert mirror.values.tobytes() == sender.held.tobytes()
    assert np.abs(mirror.values - w).max() < {"float32": 1e-6, "bf16": 1e-3, "int8": 1e-3, "top:0.3": 0.1}[name]


def test_a_mirror_that_missed_one_takes_no_other_and_starts_anew() -> None:
    sender, mirror = Deltas(codec("int8"), 10), Mirror(codec("int8"), 10)
    data = np.empty(14, np.uint8)
    w = np.arange(10, dtype=np.float32)
    whole = sender.restart(w)
    assert not mirror.add(data, 1)
    assert mirror.restart(whole, 1)
    sender.encode(w + 1, data)  # lost
    sender.encode(w + 2, data)
    assert not mirror.add(data, sender.number)
    assert not sender.follows(mirror.number)
    assert sender.follows(mirror.number, behind=2)
    assert not sender.follows(0, behind=9)
    assert not sender.follows(sender.number + 1, behind=9)
    whole = sender.restart(w + 2)
    assert mirror.restart(whole, sender.number)
    assert not mirror.restart(whole, sender.number)  # a duplicate
    assert np.array_equal(mirror.values, w + 2)


@pytest.mark.parametrize("name", ["int4", "", "top:", "top:x", "top:0", "top:1.5", "top:nan"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"compression|top-k"):
        codec(name)
