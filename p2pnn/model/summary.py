"""A graph as a text table for a person."""

from __future__ import annotations

from p2pnn.model import ops
from p2pnn.model.graph import Graph, Shape, concrete, show


def summary(graph: Graph, batch: int = 1) -> str:
    """One line per op: name, kind, output shape, parameters, FLOPs of a forward pass over `batch` rows; then totals.

    A parameter that several ops share is counted at the first.
    """
    shapes = known_shapes(graph)
    left = {p.name: p.size for p in graph.parameters}
    rows = [("op", "kind", "output", "parameters", "FLOPs")]
    for value in graph.inputs:
        rows.append((value.name, "input", f"{value.dtype}{show(value.shape)}", "", ""))
    flops = 0.0
    for op in graph.ops:
        cost = ops.TABLE[op.kind].cost(
            op,
            [concrete(shapes[v], batch) for v in op.inputs],
            [concrete(shapes[v], batch) for v in op.outputs],
        )
        flops += cost.flops
        size = sum(left.pop(name, 0) for name in op.inputs)
        output = show(shapes[op.outputs[0]]) + (" …" if len(op.outputs) > 1 else "")
        rows.append((op.name, op.kind, output, f"{size:,}" if size else "", count(cost.flops) if cost.flops else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    size = sum(p.size for p in graph.parameters)
    rule = "─" * len(lines[0])
    return "\n".join(
        line.rstrip()
        for line in (
            lines[0],
            rule,
            *lines[1:],
            rule,
            f"{graph.name}: {size:,} parameters ({size * 4 / 1e6:.1f} MB), {count(flops)}FLOPs forward for {batch} "
            f"{'row' if batch == 1 else 'rows'}",
        )
    )


def known_shapes(graph: Graph) -> dict[str, Shape]:
    """The shape of every input, parameter, state and op output, by name."""
    shapes = {v.name: v.shape for v in (*graph.inputs, *graph.values)}
    shapes.update((p.name, p.shape) for p in (*graph.parameters, *graph.state))
    return shapes


def count(number: float) -> str:
    """`1.2 M`: a number with a decimal prefix."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} P"
