"""Shape rules of the operators that move elements and compute nothing: see `shapes`.

They narrow ONNX as all rules do: the batch is axis 0, stays there, and is never cut, joined or moved.
"""

from __future__ import annotations

from p2pnn.model.graph import BATCH, Op, Value, show
from p2pnn.model.shapes import Outputs, batched, floating, refuse


def concat(op: Op, inputs: list[Value]) -> Outputs:
    """Values that differ only along `axis`."""
    first, axis = batched(op, inputs[0]), op.integer("axis")
    total = 0
    for value in inputs:
        shape = batched(op, value)
        if len(shape) != len(first) or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            refuse(op, f"shapes {show(first)} and {show(shape)} differ in more than axis {axis}")
        total += shape[axis]
    return [("float32", (*first[:axis], total, *first[axis + 1 :]))]


def reshape(op: Op, inputs: list[Value]) -> Outputs:
    """Each row gets the shape `shape[1:]`; shape[0] is 0, which in ONNX keeps the batch."""
    return [("float32", (*batched(op, inputs[0])[:1], *op.integers("shape")[1:]))]


def flatten(op: Op, inputs: list[Value]) -> Outputs:
    """(batch, …) → (batch, features)."""
    size = 1
    for extent in batched(op, inputs[0])[1:]:
        size *= extent
    return [("float32", (BATCH, size))]


def transpose(op: Op, inputs: list[Value]) -> Outputs:
    """Axis i of the output is axis perm[i] of the input; perm[0] is 0."""
    x, perm = batched(op, inputs[0]), op.integers("perm")
    if sorted(perm) != list(range(len(x))) or perm[0] != 0:
        refuse(op, f"perm {perm} must list every axis of {show(x)} once, with the batch (0) first")
    return [("float32", tuple(x[axis] for axis in perm))]


def identity(op: Op, inputs: list[Value]) -> Outputs:
    """The same value."""
    return [("float32", batched(op, inputs[0]))]


def split(op: Op, inputs: list[Value]) -> Outputs:
    """Parts of the extents `split` behind each other along `axis`."""
    x, axis, parts = batched(op, inputs[0]), op.integer("axis"), op.integers("split")
    if sum(parts) != x[axis]:
        refuse(op, f"parts of {parts} do not add up to the {x[axis]} at axis {axis} of {show(x)}")
    return [("float32", (*x[:axis], part, *x[axis + 1 :])) for part in parts]


def slices(op: Op, inputs: list[Value]) -> Outputs:
    """At each of `axes`, every `steps`-th from `starts` to before `ends`."""
    shape = list(batched(op, inputs[0]))
    for axis, start, end, step in zip(*map(op.integers, ("axes", "starts", "ends", "steps")), strict=True):
        shape[axis] = -(-(end - start) // step)
    return [("float32", tuple(shape))]


def squeeze(op: Op, inputs: list[Value]) -> Outputs:
    """Without `axes`, whose extents are 1."""
    x, axes = batched(op, inputs[0]), op.integers("axes")
    if any(x[axis] != 1 for axis in axes):
        refuse(op, f"axes {axes} of {show(x)} are not all of extent 1")
    return [("float32", tuple(extent for axis, extent in enumerate(x) if axis not in axes))]


def unsqueeze(op: Op, inputs: list[Value]) -> Outputs:
    """With extents of 1 at `axes` of the output."""
    shape = list(batched(op, inputs[0]))
    for axis in op.integers("axes"):
        shape.insert(axis, 1)
    return [("float32", tuple(shape))]


def gather(op: Op, inputs: list[Value]) -> Outputs:
    """A parameter (rows, …) and indices int64 (batch, …) → (batch, …, row's extents…)."""
    data, indices = floating(op, inputs[0], "the table"), inputs[1]
    if not data or BATCH in data:
        refuse(op, f"the table {inputs[0].name} has shape {show(data)}, but it must be a parameter (rows, …): indices that "
                   f"come with the batch choose from it along axis 0; use a slice to choose from a value")  # fmt: skip
    if indices.dtype != "int64" or indices.shape[:1] != (BATCH,):
        refuse(op, f"the indices {indices.name} are {indices.dtype} of shape {show(indices.shape)}, but must be int64 of "
                   f"shape (batch, …)")  # fmt: skip
    return [("float32", (*indices.shape, *data[1:]))]
