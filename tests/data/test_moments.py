import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.data.moments import Moments


@settings(max_examples=50)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(1, 4), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_blocks_merge_to_what_the_whole_gives(sizes: list[int], width: int, offset: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = [(random.normal(size=(size, width, 2)) + offset).astype(np.float32) for size in (*sizes, 3)]
    moments = Moments()
    for block in blocks:
        moments.add(block)
    whole = np.concatenate(blocks).astype(np.float64)
    assert moments.count == len(whole) * 2
    np.testing.assert_allclose(moments.mean, whole.mean(axis=(0, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.deviation, whole.std(axis=(0, 2)), rtol=1e-7)
    assert moments.magnitude == np.abs(whole).max()


def test_what_does_not_vary_may_be_divided_by() -> None:
    moments = Moments()
    moments.add(np.array([[0.1, 5, 0], [0.1, 6, 0]], np.float32))
    moments.add(np.array([[0.1, 7, 0]], np.float32))
    assert moments.deviation[0] == moments.deviation[2] == 1.0
    np.testing.assert_allclose(moments.deviation[1], np.std([5, 6, 7]))


def test_whole_numbers_have_a_magnitude() -> None:
    moments = Moments()
    moments.add(np.array([[3], [-9]], np.int8))
    moments.add(np.array([[8]], np.int8))
    assert moments.magnitude == 9.0
