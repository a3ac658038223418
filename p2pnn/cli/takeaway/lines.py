"""How a take-away script says each operator: one Python expression per kind, for numpy and for torch.

Where a library has no single function with ONNX's meaning, the line calls one that is copied into the script, from
`numpy_ops` or `torch_ops`; the tables name it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from p2pnn.model.graph import Op

Line = Callable[[Op, list[str]], str]
"""(op, its inputs as Python expressions) → the Python expression of its output, or of its outputs."""


def _call(function: str, *attributes: str) -> Line:
    def line(op: Op, inputs: list[str]) -> str:
        named = [f"{key}={op.attributes[key]!r}" for key in attributes]
        return f"{function}({', '.join(inputs + named)})"

    return line


def _infix(sign: str) -> Line:
    return lambda op, inputs: f"{inputs[0]} {sign} {inputs[1]}"


def _reshape(op: Op, inputs: list[str]) -> str:
    return f"{inputs[0]}.reshape({(-1, *op.integers('shape')[1:])})"


def _flatten(op: Op, inputs: list[str]) -> str:
    return f"{inputs[0]}.reshape({inputs[0]}.shape[0], -1)"


def _batch_normalization_torch(op: Op, inputs: list[str]) -> str:
    x, scale, bias, mean, variance = inputs
    momentum = round(1.0 - float(op.attributes["momentum"]), 9)  # type: ignore[arg-type]
    return (
        f"F.batch_norm({x}, {mean}, {variance}, {scale}, {bias}, training=self.training, momentum={momentum!r},"
        f" eps={op.attributes['epsilon']!r})"
    )


def _layer_normalization_torch(op: Op, inputs: list[str]) -> str:
    x, *held = inputs
    return f"F.layer_norm({x}, {x}.shape[{op.integer('axis')}:], {', '.join(held)}, eps={op.attributes['epsilon']!r})"


def _axis(function: str, axis_key: str, numpy: bool) -> Line:
    """Reductions along axes: numpy's `axis`/`keepdims` or torch's `dim`/`keepdim`."""

    def line(op: Op, inputs: list[str]) -> str:
        words = ("axis", "keepdims") if numpy else ("dim", "keepdim")
        return f"{inputs[0]}.{function}({words[0]}={op.attributes[axis_key]!r}, {words[1]}={bool(op.attributes['keepdims'])})"

    return line


def _index(op: Op, inputs: list[str]) -> str:
    """A Slice or an Unsqueeze as an index, which means the same in numpy and torch."""
    axes = op.integers("axes")
    parts = [":"] * (max(axes) + 1)
    for n, axis in enumerate(axes):
        if op.kind == "Unsqueeze":
            parts[axis] = "None"
            continue
        start, end, step = (op.integers(key)[n] for key in ("starts", "ends", "steps"))
        parts[axis] = f"{start}:{end}" + (f":{step}" if step > 1 else "")
    return f"{inputs[0]}[{', '.join(parts)}]"


def _cuts(op: Op, inputs: list[str]) -> str:
    """numpy's split takes the places of the cuts, torch's the sizes of the parts."""
    cuts = tuple(itertools.accumulate(op.integers("split")))[:-1]
    return f"np.split({inputs[0]}, {cuts}, axis={op.integer('axis')})"


_SHARED: Final[dict[str, tuple[tuple[str, ...], Line]]] = {
    "MatMul": ((), _infix("@")),
    "Conv": (("conv",), _call("conv", "strides", "pads", "dilations", "group")),
    "MaxPool": (("max_pool",), _call("max_pool", "kernel_shape", "strides", "pads")),
    "AveragePool": (("average_pool",), _call("average_pool", "kernel_shape", "strides", "pads", "count_include_pad")),
    "Add": ((), _infix("+")),
    "Sub": ((), _infix("-")),
    "Mul": ((), _infix("*")),
    "Reshape": ((), _reshape),
    "Flatten": ((), _flatten),
    "Div": ((), _infix("/")),
    "Pow": ((), _infix("**")),
    "Neg": ((), lambda op, inputs: f"-{inputs[0]}"),
    "Identity": ((), lambda op, inputs: inputs[0]),
    "Slice": ((), _index),
    "Unsqueeze": ((), _index),
    "Squeeze": ((), lambda op, inputs: f"{inputs[0]}.squeeze({op.integers('axes')})"),
    "Attention": (("attention",), _call("attention", "q_num_heads", "kv_num_heads", "is_causal", "scale")),
}

NUMPY: Final[dict[str, tuple[tuple[str, ...], Line]]] = _SHARED | {
    "Gemm": (("gemm",), _call("gemm")),
    "GlobalAveragePool": ((), lambda op, inputs: f"{inputs[0]}.mean(axis=(2, 3), keepdims=True)"),
    "BatchNormalization": (("batch_normalization",), _call("batch_normalization", "epsilon")),
    "Relu": ((), lambda op, inputs: f"np.maximum({inputs[0]}, 0)"),
    "Sigmoid": (("sigmoid",), _call("sigmoid")),
    "Tanh": ((), _call("np.tanh")),
    "Softmax": (("softmax",), _call("softmax", "axis")),
    "Concat": ((), lambda op, i: f"np.concatenate([{', '.join(i)}], axis={op.attributes['axis']})"),
    "Transpose": ((), lambda op, inputs: f"{inputs[0]}.transpose({op.integers('perm')})"),
    "ReduceMean": ((), _axis("mean", "axes", numpy=True)),
    "ReduceSum": ((), _axis("sum", "axes", numpy=True)),
    "ReduceMax": ((), _axis("max", "axes", numpy=True)),
    "ArgMax": ((), _axis("argmax", "axis", numpy=True)),
    "LayerNormalization": (("layer_normalization",), _call("layer_normalization", "axis", "epsilon")),
    "Gelu": (("gelu",), _call("gelu", "approximate")),
    "Erf": (("erf",), _call("erf")),
    "Exp": ((), _call("np.exp")),
    "Log": ((), _call("np.log")),
    "Sqrt": ((), _call("np.sqrt")),
    "Clip": ((), _call("np.clip", "min", "max")),
    "Where": ((), _call("np.where")),
    "Gather": (("gather",), _call("gather")),
    "Split": ((), _cuts),
    "Dropout": ((), lambda op, inputs: f"{inputs[0]}  # dropout acts in training only"),
}

TORCH: Final[dict[str, tuple[tuple[str, ...], Line]]] = _SHARED | {
    "Gemm": ((), _call("F.linear")),
    "GlobalAveragePool": ((), lambda op, inputs: f"{inputs[0]}.mean(dim=(2, 3), keepdim=True)"),
    "BatchNormalization": ((), _batch_normalization_torch),
    "Relu": ((), _call("F.relu")),
    "Sigmoid": ((), _call("torch.sigmoid")),
    "Tanh": ((), _call("torch.tanh")),
    "Softmax": ((), lambda op, inputs: f"F.softmax({inputs[0]}, dim={op.attributes['axis']})"),
    "Concat": ((), lambda op, i: f"torch.cat([{', '.join(i)}], dim={op.attributes['axis']})"),
    "Transpose": ((), lambda op, inputs: f"{inputs[0]}.permute({op.integers('perm')})"),
    "ReduceMean": ((), _axis("mean", "axes", numpy=False)),
    "ReduceSum": ((), _axis("sum", "axes", numpy=False)),
    "ReduceMax": ((), _axis("amax", "axes", numpy=False)),
    "ArgMax": ((), _axis("argmax", "axis", numpy=False)),
    "LayerNormalization": ((), _layer_normalization_torch),
    "Gelu": ((), _call("F.gelu", "approximate")),
    "Erf": ((), _call("torch.erf")),
    "Exp": ((), _call("torch.exp")),
    "Log": ((), _call("torch.log")),
    "Sqrt": ((), _call("torch.sqrt")),
    "Clip": ((), _call("torch.clamp", "min", "max")),
    "Where": ((), _call("torch.where")),
    "Gather": (("gather",), _call("gather")),
    "Split": ((), lambda op, inputs: f"torch.split({inputs[0]}, {op.integers('split')}, dim={op.integer('axis')})"),
    "Dropout": ((), lambda op, inputs: f"F.dropout({inputs[0]}, {op.attributes['ratio']!r}, self.training)"),
}
