"""One table of ops for several tests: kind, input values, attributes, and the output's (dtype, shape)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Op, Shape, Value

B = BATCH


@dataclass(frozen=True)
class Case:
    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    attributes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    labels: bool = False
    condition: bool = False
    more: tuple[Shape, ...] = ()
    """Further outputs' shapes."""

    def values(self) -> list[Value]:
        values = [Value(f"x{i}", "float32", shape) for i, shape in enumerate(self.inputs)]
        if self.condition:
            values[0] = Value("x0", "bool", self.inputs[0])
        if self.labels:
            values[1] = Value("x1", "int64", self.inputs[1])
        return values

    def op(self) -> Op:
        values = self.values()
        attributes = ops.normalise(self.kind, "op", self.attributes, values)
        outputs = tuple(f"y{n or ''}" for n in range(1 + len(self.more)))
        return Op(self.kind, "op", tuple(v.name for v in values), outputs, attributes)

    def __str__(self) -> str:
        return f"{self.kind}-{self.inputs}-{self.attributes}"


C4 = (4,)
CASES = [
    Case("Gemm", ((B, 5), (3, 5)), (B, 3)),
    Case("Gemm", ((B, 5), (3, 5), (3,)), (B, 3)),
    Case("Gemm", ((B, 7, 5), (3, 5), (3,)), (B, 7, 3)),
    Case("MatMul", ((B, 5), (5, 2)), (B, 2)),
    Case("MatMul", ((B, 7, 5), (5, 2)), (B, 7, 2)),
    Case("MatMul", ((B, 3, 7, 5), (B, 3, 5, 2)), (B, 3, 7, 2)),
    Case("MatMul", ((7, 5), (B, 5, 2)), (B, 7, 2)),
    Case("MatMul", ((B, 1, 7, 5), (3, 5, 2)), (B, 3, 7, 2)),
    Case("Conv", ((B, 3, 9, 8), (4, 3, 3, 3)), (B, 4, 7, 6)),
    Case("Conv", ((B, 3, 9, 8), (4, 3, 3, 2), C4), (B, 4, 5, 5), {"strides": (2, 2), "pads": (1, 1, 1, 2)}),
    Case("Conv", ((B, 4, 9, 9), (4, 1, 3, 3)), (B, 4, 5, 5), {"dilations": (2, 2), "group": 4}),
    Case("Conv", ((B, 4, 9, 9), (6, 2, 3, 1)), (B, 6, 4, 5), {"strides": [2, 2], "group": 2}),
    Case("MaxPool", ((B, 3, 9, 8),), (B, 3, 4, 4), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    Case("MaxPool", ((B, 3, 9, 8),), (B, 3, 9, 8), {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}),
    Case("MaxPool", ((B, 3, 9, 8),), (B, 3, 5, 3), {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 1, 0)}),
    Case("AveragePool", ((B, 3, 9, 8),), (B, 3, 8, 7), {"kernel_shape": (2, 2), "count_include_pad": 1}),
    Case("GlobalAveragePool", ((B, 3, 9, 8),), (B, 3, 1, 1)),
    Case("BatchNormalization", ((B, 4, 2, 2), C4, C4, C4, C4), (B, 4, 2, 2)),
    Case("BatchNormalization", ((B, 4), C4, C4, C4, C4), (B, 4), {"epsilon": 1e-3, "momentum": 0.99}),
    Case("LayerNormalization", ((B, 7, 5), (5,), (5,)), (B, 7, 5)),
    Case("LayerNormalization", ((B, 7, 5), (7, 5)), (B, 7, 5), {"axis": 1, "epsilon": 1e-6}),
    Case("Attention", ((B, 7, 12), (B, 5, 12), (B, 5, 8)), (B, 7, 8), {"q_num_heads": 4}),
    Case(
        "Attention",
        ((B, 7, 12), (B, 7, 6), (B, 7, 10)),
        (B, 7, 20),
        {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1, "scale": 0.5},
    ),
    Case("Gelu", ((B, 3),), (B, 3)),
    Case("Gelu", ((B, 3, 2),), (B, 3, 2), {"approximate": "tanh"}),
    Case("Relu", ((B, 3),), (B, 3)),
    Case("Sigmoid", ((B,),), (B,)),
    Case("Tanh", ((B, 3, 2),), (B, 3, 2)),
    Case("Softmax", ((B, 3, 2),), (B, 3, 2)),
    Case("Softmax", ((B, 3, 2),), (B, 3, 2), {"axis": 1}),
    Case("Add", ((B, 3), (B, 3)), (B, 3)),
    Case("Add", ((B, 3), (3,)), (B, 3)),
    Case("Sub", ((2, 1), (B, 1, 3)), (B, 2, 3)),
    Case("Mul", ((B, 3, 1), (1, 1, 4)), (B, 3, 4)),
    Case("Mul", ((), (B, 4)), (B, 4)),
    Case("Gather", ((9, 4), (B, 7)), (B, 7, 4), labels=True),
    Case("Gather", ((9,), (B,)), (B,), labels=True),
    Case("Split", ((B, 7, 6),), (B, 7, 2), {"axis": -1, "split": (2, 3, 1)}, more=((B, 7, 3), (B, 7, 1))),
    *(Case(kind, ((B, 3, 2),), (B, 3, 2)) for kind in ("Exp", "Log", "Sqrt", "Erf", "Neg", "Identity", "Clip")),
    Case("Clip", ((B, 3),), (B, 3), {"min": -1, "max": 0.5}),
    Case("Div", ((B, 3), (3,)), (B, 3)),
    Case("Pow", ((B, 3), ()), (B, 3)),
    Case("Pow", ((3, 1), (B, 3, 4)), (B, 3, 4)),
    Case("Where", ((B, 1), (B, 3), (3,)), (B, 3), condition=True),
    Case("Where", ((B, 4, 1), (3,), ()), (B, 4, 3), condition=True),
    Case("Concat", ((B, 2), (B, 3), (B, 1)), (B, 6), {"axis": 1}),
    Case("Concat", ((B, 2, 5), (B, 2, 3)), (B, 2, 8), {"axis": -1}),
    Case("Reshape", ((B, 2, 6),), (B, 3, 4), {"shape": (0, 3, -1)}),
    Case("Reshape", ((B, 2, 6),), (B, 12), {"shape": (-1, 12)}),
    Case("Reshape", ((B, 2, 6),), (B, 2, 3, 2), {"shape": (0, 0, 3, 2)}),
    Case("Reshape", ((B, 1),), (B,), {"shape": (-1,)}),
    Case("Flatten", ((B, 2, 6, 2),), (B, 24)),
    Case("Flatten", ((B,),), (B, 1)),
    Case("Squeeze", ((B, 1, 6, 1),), (B, 1, 6), {"axes": (-1,)}),
    Case("Squeeze", ((B, 1, 6, 1),), (B, 6), {"axes": (3, 1)}),
    Case("Unsqueeze", ((B, 6),), (B, 1, 6, 1), {"axes": (-1, 1)}),
    Case("Slice", ((B, 6, 5),), (B, 2, 5), {"axes": (1,), "starts": (-3,), "ends": (9,), "steps": (2,)}),
    Case("Slice", ((B, 6, 5),), (B, 4, 1), {"axes": (2, 1), "starts": (2, 1), "ends": (3, -1)}),
    Case("ReduceSum", ((B, 2, 6, 3),), (B, 2, 1, 1), {"axes": (-1, 2)}),
    Case("ReduceMax", ((B, 2, 6, 3),), (B, 6), {"axes": (1, 3), "keepdims": 0}),
    Case("Transpose", ((B, 2, 6, 3),), (B, 6, 3, 2), {"perm": (0, 2, 3, 1)}),
    Case("ReduceMean", ((B, 2, 6, 3),), (B, 2, 1, 1), {"axes": (-1, 2)}),
    Case("ReduceMean", ((B, 2, 6, 3),), (B, 6), {"axes": (1, 3), "keepdims": 0}),
    Case("ArgMax", ((B, 2, 6),), (B, 2), {"axis": -1, "keepdims": 0}, dtype="int64"),
    Case("ArgMax", ((B, 2, 6),), (B, 1, 6), {"axis": 1}, dtype="int64"),
    Case("Dropout", ((B, 3),), (B, 3), {"ratio": 0.25}),
    Case("SoftmaxCrossEntropyLoss", ((B, 3), (B,)), (), labels=True),
    Case("SoftmaxCrossEntropyLoss", ((B, 7, 4), (B, 4)), (), labels=True),
    Case("SoftmaxCrossEntropyLoss", ((B, 7, 4, 5), (B, 4, 5)), (), labels=True),
    Case("MeanSquaredError", ((B, 3), (B, 3)), ()),
    Case("Accuracy", ((B, 3), (B,)), (2,), dtype="float64", labels=True),
    Case("Accuracy", ((B, 7, 4), (B, 7)), (2,), {"axis": -1}, dtype="float64", labels=True),
    Case("TopKAccuracy", ((B, 7), (B,)), (2,), dtype="float64", labels=True),
    Case("AbsoluteError", ((B,), (B,)), (2,), dtype="float64"),
    Case("SquaredError", ((B, 2, 2), (B, 2, 2)), (2,), dtype="float64"),
    Case("TokenLoss", ((B, 7), (B,)), (2,), dtype="float64", labels=True),
]
