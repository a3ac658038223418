"""Does the data fit the model? Which column feeds which input, and with what limits, found before anything starts.

A pairing comes, in this order, from what the person said, from equal names, from the part an input plays (targets of a
loss or metric read `y`, the others `x`), and from what is left over. Shapes must agree but for axes of extent one: images
[28, 28] fit an input (1, 28, 28).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from p2pnn.data.table import ColumnType
from p2pnn.errors import DataError
from p2pnn.model.graph import Graph, Shape, Value

CLASS_LABELS: Final = ("SoftmaxCrossEntropyLoss", "Accuracy", "TopKAccuracy", "TokenLoss")
"""Ops whose second input is a class number below the first input's extent at their `axis`."""

TARGETS: Final = (*CLASS_LABELS, "MeanSquaredError", "AbsoluteError", "SquaredError")
"""Ops whose second input is what is to be learnt."""


class Feature(msgspec.Struct, frozen=True):
    """One graph input and its column. shape: of a row, the input's. classes: labels, and numbers that choose a row of a
    table of parameters, are 0 … classes − 1; 0 for others.

    target: it is what is learnt, and is never scaled. whole: the input takes whole numbers.
    """

    input: str
    column: str
    shape: Shape
    classes: int = 0
    target: bool = False
    whole: bool = False


def fit(
    graph: Graph,
    columns: Mapping[str, ColumnType],
    source: str,
    *,
    wanted: Mapping[str, str] | None = None,
    label: str = "",
    inputs: Iterable[str] | None = None,
) -> tuple[Feature, ...]:
    """Pair the graph's inputs (or only `inputs`) with the columns of the data called `source`.

    wanted: pairs the person gave, input → column. label: the column to learn. Raises DataError: an input or column that
    does not exist, an input without a column, a shape (both named) or a dtype that does not fit.
    """
    values = {value.name: value for value in graph.inputs}
    names = [name for name in values if inputs is None or name in set(inputs)]
    pairs = _pair(names, targets(graph), columns, source, wanted or {}, label)
    for name, column in pairs.items():
        _check(values[name], columns[column], column, source)
    counts = _rows_chosen(graph) | class_counts(graph)
    return tuple(
        Feature(
            name,
            pairs[name],
            values[name].shape[1:],
            counts.get(name, 0),
            name in targets(graph),
            not values[name].dtype.startswith("float"),
        )
        for name in names
    )


def targets(graph: Graph) -> set[str]:
    """The inputs that are what is to be learnt: read by a loss or metric beside what the network found."""
    names = {value.name for value in graph.inputs}
    return {op.inputs[1] for op in graph.ops if op.kind in TARGETS and len(op.inputs) > 1} & names


def context(graph: Graph) -> int:
    """How many tokens a row of the graph's text input has; 0 for a graph that takes no row of whole numbers."""
    learnt = targets(graph)
    rows = [v.shape[1] for v in graph.inputs if v.name not in learnt and len(v.shape) == 2 and v.dtype == "int64"]
    return rows[0] if rows else 0


def channels(graph: Graph) -> int:
    """Of the images that the graph takes, 1 or 3; 0 where it takes none of these."""
    learnt = targets(graph)
    found = [v.shape[1] for v in graph.inputs if v.name not in learnt and len(v.shape) == 4]
    return found[0] if found and found[0] in (1, 3) else 0


def image_size(graph: Graph) -> tuple[int, int] | None:
    """(height, width) of the images that the graph takes; None where it takes none."""
    learnt = targets(graph)
    found = [v.shape[2:] for v in graph.inputs if v.name not in learnt and len(v.shape) == 4]
    return (found[0][0], found[0][1]) if found else None


def class_counts(graph: Graph) -> dict[str, int]:
    """Input → number of classes, for inputs that are class labels."""
    shapes = {value.name: value.shape for value in (*graph.inputs, *graph.values)}
    names = {value.name for value in graph.inputs}
    counts: dict[str, int] = {}
    for op in graph.ops:
        if op.kind in CLASS_LABELS and op.inputs[1] in names and len(shapes[op.inputs[0]]) > 1:
            count = shapes[op.inputs[0]][op.integer("axis")]
            counts[op.inputs[1]] = min(count, counts.get(op.inputs[1], count))
    return counts


def _rows_chosen(graph: Graph) -> dict[str, int]:
    """Input → rows of the table of parameters that it chooses from."""
    rows = {parameter.name: parameter.shape[0] for parameter in graph.parameters if parameter.shape}
    names = {value.name for value in graph.inputs}
    chosen = [op.inputs for op in graph.ops if op.kind == "Gather" and op.inputs[1] in names and op.inputs[0] in rows]
    return {name: min(rows[table] for table, other in chosen if other == name) for _, name in chosen}


def _pair(
    names: list[str],
    learnt: set[str],
    columns: Mapping[str, ColumnType],
    source: str,
    wanted: Mapping[str, str],
    label: str,
) -> dict[str, str]:
    there = ", ".join(columns)
    for name, column in wanted.items():
        if name not in names:
            raise DataError(f"the model has no input {name!r}; it has {', '.join(names)}")
        if column not in columns:
            raise DataError(f"{source} has no column {column!r}, asked for as {name}; it has {there}")
    pairs = dict(wanted)
    pairs |= {name: name for name in names if name not in pairs and name in columns}
    y = label if label in columns else "y"
    for name in names:
        column = y if name in learnt else "x"
        if name not in pairs and column in columns and column not in pairs.values():
            pairs[name] = column
    rest = [name for name in names if name not in pairs]
    free = [column for column in columns if column not in pairs.values()]
    if len(rest) == 1 and len(free) == 1:
        pairs[rest[0]] = free[0]
    elif rest:
        hint = "; name the column to learn with --label (in Python label=)" if rest[0] in learnt else ""
        raise DataError(
            f"no column of {source} is left for the model's input {rest[0]!r}: it has {there}{hint}, "
            f"or say which with inputs = {{ {rest[0]} = COLUMN }} in a job file (in Python inputs=)"
        )
    return pairs


def _check(value: Value, column: ColumnType, name: str, source: str) -> None:
    wanted, found = value.shape[1:], column.shape
    if _without_ones(wanted) != _without_ones(found):
        called = source if name in ("x", "y", value.name) else f"{name} of {source}"
        raise DataError(f"{value.name} is {wanted} in the model but {found} in {called}")
    if not value.dtype.startswith("float") and not column.is_integer:
        raise DataError(
            f"{value.name} takes whole numbers ({value.dtype}), but column {name} of {source} holds {column.dtype}"
        )


def _without_ones(shape: Shape) -> Shape:
    return tuple(extent for extent in shape if extent != 1)
