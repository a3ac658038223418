"""What a line says, where it is worked out rather than looked up."""

import numpy as np
import pytest

from p2pnn.cli.takeaway.lines import NUMPY, TORCH
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Op, Value


def line(kind: str, numpy: bool = True, rank: int = 3, **attributes: object) -> str:
    x = Value("x", "float32", (BATCH, *range(4, 3 + rank)))
    op = Op(kind, "op", ("x",), ("y",), ops.normalise(kind, "op", attributes, [x]))
    return (NUMPY if numpy else TORCH)[kind][1](op, ["x"])


def test_numpy_and_torch_know_the_same_kinds() -> None:
    assert set(NUMPY) == set(TORCH)


@pytest.mark.parametrize("numpy", [True, False])
def test_slices_and_new_axes_are_indices(numpy: bool) -> None:
    assert line("Slice", numpy, axes=(-1,), starts=(1,), ends=(99,)) == "x[:, :, 1:5]"
    assert line("Slice", numpy, axes=(1,), starts=(-3,), ends=(4,), steps=(2,)) == "x[:, 1:4:2]"
    assert line("Unsqueeze", numpy, axes=(1, -1)) == "x[:, None, :, :, None]"
    x = np.zeros((2, 4, 5))
    assert eval(line("Unsqueeze", numpy, axes=(1, -1)), {"x": x}).shape == (2, 1, 4, 5, 1)


def test_split_takes_cuts_in_numpy_and_sizes_in_torch() -> None:
    assert line("Split", axis=2, split=(1, 3, 1)) == "np.split(x, (1, 4), axis=2)"
    assert line("Split", False, axis=2, split=(1, 3, 1)) == "torch.split(x, (1, 3, 1), dim=2)"


def test_reductions_have_each_library_s_words() -> None:
    assert line("ReduceMax", axes=(1,)) == "x.max(axis=(1,), keepdims=True)"
    assert line("ReduceMax", False, axes=(1,)) == "x.amax(dim=(1,), keepdim=True)"
