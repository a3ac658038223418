"""Shape rules: what an op's inputs must look like, and what comes out.

One rule per kind, `rule(op, inputs) -> [(dtype, shape), …]`. The inputs' number and the attributes are already checked
against the op's row and canonical (`ops.normalise`). Semantics are ONNX's (opset 23), narrowed in one respect: the batch
is always axis 0, no op mixes its rows, and a value without a batch (a parameter) is only ever an operand beside one that
has it.

Every refusal is a ModelError that names the op, the shapes and what to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

from p2pnn.errors import ModelError
from p2pnn.model.graph import BATCH, Op, Shape, Value, show

Outputs = list[tuple[str, Shape]]

STRIDE_MAX: Final = 4096
"""Of a convolution or pool. Plans and kernels look at every place within a stride; more than a few hundred means nothing."""


def refuse(op: Op, sentence: str) -> NoReturn:
    """Raise the ModelError for this op."""
    raise ModelError(f"{op.name} ({op.kind}): {sentence}")


def batched(op: Op, value: Value, ranks: Sequence[int] = (), what: str = "the input") -> Shape:
    """The shape of a float32 value with the batch at axis 0 and one of the given ranks (any, if none are given)."""
    floating(op, value, what)
    if not value.shape or value.shape[0] != BATCH:
        refuse(op, f"{what} {value.name} has shape {show(value.shape)}, but it needs the batch at axis 0")
    if ranks and len(value.shape) not in ranks:
        wanted = " or ".join(str(r) for r in ranks)
        hint = "; put nn.flatten before it" if ranks == (2, 3) and len(value.shape) > 3 else ""
        refuse(op, f"{what} {value.name} has shape {show(value.shape)}, but it needs {wanted} axes{hint}")
    return value.shape


def floating(op: Op, value: Value, what: str = "the input") -> Shape:
    """The shape of a float32 value."""
    if value.dtype != "float32":
        refuse(op, f"{what} {value.name} has dtype {value.dtype}, but it needs float32")
    return value.shape


def operand(op: Op, value: Value, shape: Shape, what: str, fits: Value) -> None:
    """Check a parameter-like operand against the only shape that fits."""
    if floating(op, value, what) != shape:
        refuse(
            op,
            f"{what} {value.name} has shape {show(value.shape)}, but an input {fits.name} of shape {show(fits.shape)} "
            f"needs {show(shape)}",
        )


def broadcast(op: Op, a: Shape, b: Shape) -> Shape:
    """numpy's rules, with the batch lined up: it must come out at axis 0 and may only meet itself or 1."""
    rank = max(len(a), len(b))
    wide = [(1,) * (rank - len(s)) + s for s in (a, b)]
    for x, y in zip(*wide, strict=True):
        if x != y and 1 not in (x, y):
            lined = " (the batch does not line up)" if BATCH in (x, y) else ""
            refuse(op, f"shapes {show(a)} and {show(b)} do not go together{lined}; axes must be equal or 1")
    shape = tuple(y if x == 1 else x for x, y in zip(*wide, strict=True))
    if BATCH in shape[1:]:
        refuse(
            op, f"shapes {show(a)} and {show(b)} would put the batch behind axis 0; give both the same number of axes"
        )
    return shape


def same(op: Op, inputs: list[Value]) -> Outputs:
    """Elementwise functions of one value."""
    return [("float32", batched(op, inputs[0]))]


def arithmetic(op: Op, inputs: list[Value]) -> Outputs:
    """Add, Sub, Mul, Div, Pow."""
    a, b = (floating(op, v) for v in inputs)
    shape = broadcast(op, a, b)
    if not shape or shape[0] != BATCH:
        refuse(op, f"shapes {show(a)} and {show(b)} have no batch; one of the two must depend on an input")
    return [("float32", shape)]


def where(op: Op, inputs: list[Value]) -> Outputs:
    """A bool condition and two values, all three broadcast."""
    if inputs[0].dtype != "bool":
        refuse(op, f"the condition {inputs[0].name} has dtype {inputs[0].dtype}, but it needs bool; make it with "
                   f'nn.Input(…, dtype="bool")')  # fmt: skip
    shape = broadcast(op, inputs[0].shape, broadcast(op, *(floating(op, v) for v in inputs[1:])))
    if not shape or shape[0] != BATCH:
        refuse(op, f"the result of shape {show(shape)} has no batch; one of the three must depend on an input")
    return [("float32", shape)]


def gemm(op: Op, inputs: list[Value]) -> Outputs:
    """y = x·wᵀ (+ b): x (batch, in) or (batch, positions, in), w (out, in), b (out,)."""
    x = batched(op, inputs[0], (2, 3))
    w = floating(op, inputs[1], "the weight")
    if len(w) != 2 or w[1] != x[-1] or BATCH in w:
        refuse(op, f"the weight {inputs[1].name} has shape {show(w)}, but the input {inputs[0].name} of shape {show(x)} "
                   f"needs (outputs, {x[-1]})")  # fmt: skip
    if len(inputs) > 2:
        operand(op, inputs[2], (w[0],), "the bias", inputs[1])
    return [("float32", (*x[:-1], w[0]))]


def matmul(op: Op, inputs: list[Value]) -> Outputs:
    """numpy.matmul for two or more axes: (…, n, k) · (…, k, m)."""
    a, b = (floating(op, v) for v in inputs)
    if len(a) < 2 or len(b) < 2:
        refuse(op, f"shapes {show(a)} and {show(b)}: both sides need at least 2 axes")
    if a[-1] != b[-2] or a[-1] == BATCH:
        refuse(op, f"shapes {show(a)} and {show(b)} do not go together: the left's last axis and the right's last but one "
                   f"must be equal (and not the batch)")  # fmt: skip
    shape = (*broadcast(op, a[:-2], b[:-2]), a[-2], b[-1])
    if shape[0] != BATCH or BATCH in shape[1:]:
        refuse(op, f"shapes {show(a)} and {show(b)}: the batch must come out at axis 0 and nowhere else")
    return [("float32", shape)]


def window(op: Op, x: Shape, kernel: Sequence[int], dilations: Sequence[int] = (1, 1)) -> Shape:
    """The spatial extents after a sliding window: ⌊(n + pads − dilated kernel) / stride⌋ + 1 per axis."""
    strides, pads = op.integers("strides"), op.integers("pads")
    if max(strides) > STRIDE_MAX:
        refuse(op, f"strides {strides} are over the limit of {STRIDE_MAX}; slice the input first")
    result = []
    for axis in range(2):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        room = x[2 + axis] + pads[axis] + pads[2 + axis] - extent
        if room < 0:
            refuse(op, f"a window of {extent} does not fit into the input of shape {show(x)} with pads {pads}; "
                       f"use a smaller window, more padding or a larger input")  # fmt: skip
        result.append(room // strides[axis] + 1)
    return tuple(result)


def conv(op: Op, inputs: list[Value]) -> Outputs:
    """x (batch, C, H, W), w (O, C/group, kh, kw), b (O,)."""
    x = batched(op, inputs[0], (4,))
    w = floating(op, inputs[1], "the weight")
    group = op.integer("group")
    if len(w) != 4 or BATCH in w or w[1] * group != x[1] or w[0] % group:
        refuse(op, f"the weight {inputs[1].name} has shape {show(w)}, but the input {inputs[0].name} of shape {show(x)} "
                   f"with group {group} needs (outputs divisible by {group}, {x[1]} / {group}, height, width)")  # fmt: skip
    if len(inputs) > 2:
        operand(op, inputs[2], (w[0],), "the bias", inputs[1])
    return [("float32", (BATCH, w[0], *window(op, x, w[2:], op.integers("dilations"))))]


def pool(op: Op, inputs: list[Value]) -> Outputs:
    """MaxPool and AveragePool over (batch, C, H, W)."""
    x = batched(op, inputs[0], (4,))
    kernel, pads = op.integers("kernel_shape"), op.integers("pads")
    if any(pads[axis] >= kernel[axis % 2] for axis in range(4)):
        refuse(op, f"pads {pads} must be smaller than the window {kernel}: some windows would hold padding only")
    return [("float32", (*x[:2], *window(op, x, kernel)))]


def global_average_pool(op: Op, inputs: list[Value]) -> Outputs:
    """(batch, C, H, W) → (batch, C, 1, 1)."""
    return [("float32", (*batched(op, inputs[0], (4,))[:2], 1, 1))]


def batch_normalization(op: Op, inputs: list[Value]) -> Outputs:
    """x (batch, C, …) with scale, bias, running mean and running variance, each (C,)."""
    x = batched(op, inputs[0])
    if len(x) < 2:
        refuse(op, f"the input {inputs[0].name} has shape {show(x)}, but it needs channels at axis 1")
    for value, what in zip(inputs[1:], ("the scale", "the bias", "the mean", "the variance"), strict=True):
        operand(op, value, (x[1],), what, inputs[0])
    return [("float32", x)]


def layer_normalization(op: Op, inputs: list[Value]) -> Outputs:
    """x with a scale and, if there is one, a bias of the shape of its axes from `axis` on."""
    x = batched(op, inputs[0])
    for value, what in zip(inputs[1:], ("the scale", "the bias"), strict=False):
        operand(op, value, x[op.integer("axis") :], what, inputs[0])
    return [("float32", x)]


def attention(op: Op, inputs: list[Value]) -> Outputs:
    """Queries (batch, n, query heads · size), keys (batch, m, key heads · size), values (batch, m, key heads · width) →
    (batch, n, query heads · width)."""
    q, k, v = (batched(op, x, (3,), what) for x, what in zip(inputs, ("queries", "keys", "values"), strict=True))
    heads, shared = op.integer("q_num_heads"), op.integer("kv_num_heads")
    if heads % shared:
        refuse(op, f"{heads} query heads cannot share {shared} key heads; the first must be a multiple of the second")
    if q[2] % heads or k[2] != q[2] // heads * shared or k[1] != v[1] or v[2] % shared:
        refuse(op, f"queries of shape {show(q)} with {heads} heads and {shared} key heads need keys "
                   f"(batch, m, {q[2] // heads * shared}) and values (batch, m, {shared} · width), but there are "
                   f"{show(k)} and {show(v)}")  # fmt: skip
    return [("float32", (BATCH, q[1], heads * (v[2] // shared)))]


def reduce(op: Op, inputs: list[Value]) -> Outputs:
    """ReduceMean, ReduceSum and ReduceMax over `axes`; keepdims leaves them as 1."""
    return [("float32", _reduced(batched(op, inputs[0]), op.integers("axes"), op.integer("keepdims")))]


def arg_max(op: Op, inputs: list[Value]) -> Outputs:
    """The first index of the largest element along `axis`."""
    return [("int64", _reduced(batched(op, inputs[0]), (op.integer("axis"),), op.integer("keepdims")))]


def _reduced(x: Shape, axes: Sequence[int], keep: int) -> Shape:
    return tuple(1 if axis in axes else extent for axis, extent in enumerate(x) if keep or axis not in axes)


def _scores_and_labels(op: Op, inputs: list[Value]) -> int:
    """The number of classes."""
    scores, axis, labels = batched(op, inputs[0], (), "the scores"), op.integer("axis"), inputs[1]
    if axis not in (1, len(scores) - 1) or (axis > 1 and len(scores) == 4):
        refuse(op, f"scores of shape {show(scores)} have their classes at axis 1, or at the last one unless there are 4 axes; "
                   f"axis is {axis}")  # fmt: skip
    wanted = scores[:axis] + scores[axis + 1 :]
    if labels.dtype != "int64" or labels.shape != wanted:
        refuse(op, f"the labels {labels.name} are {labels.dtype} of shape {show(labels.shape)}, but scores of shape "
                   f"{show(scores)} with their classes at axis {axis} need int64 of shape {show(wanted)}")  # fmt: skip
    return scores[axis]


def _pair(op: Op, inputs: list[Value]) -> None:
    prediction, target = batched(op, inputs[0], (), "the prediction"), batched(op, inputs[1], (), "the target")
    if prediction != target:
        refuse(op, f"the prediction has shape {show(prediction)} and the target {show(target)}; they must be equal")


def classification_loss(op: Op, inputs: list[Value]) -> Outputs:
    """Scores with their classes at `axis` and int64 labels of their shape without it → a scalar."""
    _scores_and_labels(op, inputs)
    return [("float32", ())]


def regression_loss(op: Op, inputs: list[Value]) -> Outputs:
    """Prediction and target of one shape → a scalar."""
    _pair(op, inputs)
    return [("float32", ())]


def classification_metric(op: Op, inputs: list[Value]) -> Outputs:
    """Scores and labels → (sum, count)."""
    classes = _scores_and_labels(op, inputs)
    if "k" in op.attributes and op.integer("k") > classes:
        refuse(op, f"k is {op.integer('k')}, but there are only {classes} classes in shape {show(inputs[0].shape)}")
    return [("float64", (2,))]


def regression_metric(op: Op, inputs: list[Value]) -> Outputs:
    """Prediction and target → (sum, count)."""
    _pair(op, inputs)
    return [("float64", (2,))]
