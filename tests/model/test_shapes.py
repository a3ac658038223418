"""Our shape rules against ONNX's own shape inference, for every kind that ONNX has."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Shape
from tests.model.cases import CASES, Case

ONNX_CASES = [
    case
    for case in CASES
    if ops.TABLE[case.kind].domain == "" and not (case.kind == "Gemm" and len(case.inputs[0]) == 3)
]
"""Without what we allow beyond ONNX: a Gemm of sequences, which is its MatMul and Add."""
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def dims(shape: Shape) -> list[int | str]:
    return ["N" if extent == BATCH else extent for extent in shape]


def one_op_model(case: Case) -> onnx.ModelProto:
    """The case as an ONNX model; what newer opsets made inputs becomes a constant."""
    op = case.op()
    attributes: dict[str, object] = dict(op.attributes)
    names, constants = list(op.inputs), []
    if op.kind == "SoftmaxCrossEntropyLoss":
        assert attributes.pop("axis") == 1
    for key in ("shape", "starts", "ends", "axes", "steps", "ratio", "split", "min", "max"):
        if key in attributes:
            value = attributes.pop(key)
            numbers = value if isinstance(value, tuple) else [value]
            kind = TensorProto.INT64 if isinstance(value, tuple) else TensorProto.FLOAT
            constants.append(helper.make_tensor(key, kind, [len(numbers)] if isinstance(value, tuple) else [], numbers))
            names.append(key)
    node = helper.make_node(op.kind, names, list(op.outputs), **attributes)
    inputs = [helper.make_tensor_value_info(v.name, TYPES[v.dtype], dims(v.shape)) for v in case.values()]
    outputs = [helper.make_tensor_value_info(name, TYPES[case.dtype], None) for name in op.outputs]
    graph = helper.make_graph([node], "one", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


@pytest.mark.parametrize("case", ONNX_CASES, ids=str)
def test_shapes_are_onnx_s(case: Case) -> None:
    model = one_op_model(case)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    for output, wanted in zip(inferred.graph.output, (case.output, *case.more), strict=True):
        tensor = output.type.tensor_type
        assert tensor.elem_type == TYPES[case.dtype]
        shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
        assert len(shape) == len(wanted)
        ours = dims(wanted)
        assert shape[1:] == ours[1:]
        # Where ONNX cannot carry the batch's name through, it leaves the extent open.
        assert shape[:1] == ours[:1] or shape[0] in (0, "") or str(shape[0]).startswith("unk")
