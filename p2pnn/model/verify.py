"""What every graph must satisfy, checked at each border: built, imported, passed by a graph pass, received from a peer.

After `verify` the rest of the program may index, look up and allocate by a graph without further questions. A graph from
a stranger can therefore do no worse than ask for a large but bounded amount of memory, which plans compare with what
there is before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from p2pnn.errors import ModelError
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, FORMAT, Graph, Parameter, Scaling, Shape, Value, elements, show

OPS_MAX: Final = 100_000
RANK_MAX: Final = 8
ELEMENTS_MAX: Final = 2**40
"""Per tensor and row: 4 TiB of float32, beyond any node, so products of sizes stay far from 64 bits."""
NAME_CHARACTERS_MAX: Final = 200
CLASSES_MAX: Final = 1_000_000
MESSAGE_CHARACTERS_MAX: Final = 1000
"""Of a refusal of received bytes: what a stranger wrote may be quoted in it."""

INPUT_DTYPES: Final = ("float32", "int64", "bool")
INITIALIZER_KINDS: Final = ("constant", "uniform", "normal")
METRIC_KINDS: Final = ("mean", "root", "exp")
METRIC_OPS: Final = ("Accuracy", "TopKAccuracy", "AbsoluteError", "SquaredError", "TokenLoss")
CONSTANT_OPS: Final = ("Add", "Sub", "Mul", "Div", "Pow")
"""Ops that may read saved state that no normalization updates: a constant, such as the number of `2 * x`."""
LOSS_OPS: Final = ("SoftmaxCrossEntropyLoss", "MeanSquaredError")


def decode(data: bytes | memoryview) -> Graph:
    """The graph that `graph.encode` wrote, verified. Raises ModelError for bytes that are not one, or not a valid one."""
    try:
        graph = msgspec.msgpack.decode(data, type=Graph)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ModelError(f"these bytes are not a model: {error}") from None
    try:
        verify(graph)
    except ModelError as error:
        raise ModelError(str(error)[:MESSAGE_CHARACTERS_MAX]) from None
    return graph


def verify(graph: Graph) -> None:
    """Raise ModelError, naming the offender, unless the graph is valid and everything in it is canonical."""
    if graph.format != FORMAT:
        raise ModelError(f"the model has format {graph.format}, but this p2pnn reads {FORMAT}; use a newer p2pnn")
    if len(graph.ops) > OPS_MAX:
        raise ModelError(f"the model has {len(graph.ops)} ops; at most {OPS_MAX} are supported")
    if not graph.ops:
        raise ModelError("the model has no ops")
    _name("the model", graph.name)
    known = _sources(graph)
    _ops(graph, known)
    _results(graph, known)
    _targets(graph)
    _scaling(graph)
    if len(graph.classes) > CLASSES_MAX:
        raise ModelError(f"the model names {len(graph.classes)} classes; at most {CLASSES_MAX} are supported")
    for name in graph.classes:
        if len(name) != 1:  # a text's characters are classes too, and the end of a line is one of them
            _name("a class", name)


def _sources(graph: Graph) -> dict[str, Value]:
    """Inputs, parameters and state as values, by name."""
    known: dict[str, Value] = {}
    for value in graph.inputs:
        if value.dtype not in INPUT_DTYPES:
            raise ModelError(f"input {value.name} has dtype {value.dtype!r}; it must be {' or '.join(INPUT_DTYPES)}")
        if not value.shape or value.shape[0] != BATCH:
            raise ModelError(f"input {value.name} has shape {show(value.shape)}, but needs the batch at axis 0")
        _shape(f"input {value.name}", value.shape[1:])
        _add(known, "an input", value)
    for parameter in (*graph.parameters, *graph.state):
        _shape(f"parameter {parameter.name}", parameter.shape)
        _initializer(parameter)
        _add(known, "a parameter", Value(parameter.name, "float32", parameter.shape))
    return known


def _ops(graph: Graph, known: dict[str, Value]) -> None:
    """Order, names, attributes and shapes; every op's outputs join `known`."""
    described = {v.name: v for v in graph.values}
    if len(described) != len(graph.values) or len(graph.values) != sum(len(op.outputs) for op in graph.ops):
        raise ModelError("the model's list of values does not have exactly one entry per output of an op")
    state = {p.name for p in graph.state}
    used: set[str] = set()
    seen: set[str] = set()
    reduced: set[str] = set()
    statistics = graph.statistics
    for op in graph.ops:
        _name("an op", op.name)
        if op.name in seen:
            raise ModelError(f"two ops are called {op.name!r}; names must differ")
        seen.add(op.name)
        for name in op.inputs:
            if name in reduced:
                raise ModelError(f"op {op.name} reads {name!r}, a loss or metric; ops read only values that have rows")
            if name not in known:
                raise ModelError(
                    f"op {op.name} reads {name!r}, which is no input, no parameter and no earlier op's output"
                )
            used.add(name)
        results = ops.infer(op, [known[name] for name in op.inputs])
        if len(results) != len(op.outputs):
            raise ModelError(f"op {op.name} ({op.kind}) has {len(op.outputs)} outputs, but makes {len(results)}")
        for position, name in enumerate(op.inputs):
            running = op.kind == "BatchNormalization" and position in (3, 4)
            constant = name in state and name not in statistics and op.kind in CONSTANT_OPS
            if running != (name in state) and not constant:
                what = "needs saved state" if running else "may not read saved state"
                raise ModelError(f"op {op.name} ({op.kind}) {what} as input {position}, but {name!r} is given")
        for name, (dtype, shape) in zip(op.outputs, results, strict=True):
            value = Value(name, dtype, shape)
            _shape(f"the output of {op.name}", shape[1:] if shape[:1] == (BATCH,) else shape)
            if described.get(name) != value:
                stated = described.get(name)
                text = f"{stated.dtype}{show(stated.shape)}" if stated else "nothing"
                raise ModelError(f"value {name!r} is described as {text}, but op {op.name} makes {dtype}{show(shape)}")
            _add(known, f"the output of {op.name}", value)
            if shape[:1] != (BATCH,):
                reduced.add(name)
    convolving = {op.inputs[1] for op in graph.ops if op.kind == "Conv"}
    for op in graph.ops:
        if op.kind in ("Gather", "LayerNormalization") and (shared := convolving.intersection(op.inputs)):
            raise ModelError(
                f"op {op.name} ({op.kind}) reads {min(shared)!r}, a convolution's weight; give it one of its own"
            )
    for parameter in (*graph.parameters, *graph.state):
        if parameter.name not in used:
            raise ModelError(f"no op reads the parameter {parameter.name}")


def _results(graph: Graph, known: dict[str, Value]) -> None:
    """Outputs, losses and metrics name what ops of the right kind made."""
    makers = {name: op.kind for op in graph.ops for name in op.outputs}
    for key, name in graph.outputs.items():
        _name("an output", key)
        if name not in makers or known[name].shape[:1] != (BATCH,):
            raise ModelError(f"output {key} is {name!r}, but must be what an op makes for each row")
    if not graph.outputs and not graph.losses:
        raise ModelError("the model has neither outputs nor a loss")
    if len(set(graph.losses)) != len(graph.losses):
        raise ModelError("a loss is given twice")
    for name in graph.losses:
        if makers.get(name) not in LOSS_OPS:
            raise ModelError(f"{name!r} is no loss; use nn.cross_entropy or nn.mean_squared_error")
    names: set[str] = set()
    for metric in graph.metrics:
        _name("a metric", metric.name)
        if metric.name in names:
            raise ModelError(f"two metrics are called {metric.name!r}")
        names.add(metric.name)
        if makers.get(metric.value) not in METRIC_OPS:
            raise ModelError(f"metric {metric.name} is {metric.value!r}, which is not the output of a metric op")
        if metric.kind not in METRIC_KINDS or metric.goal not in ("max", "min"):
            raise ModelError(
                f"metric {metric.name} has kind {metric.kind!r} and goal {metric.goal!r}, which are not known"
            )


def _targets(graph: Graph) -> None:
    """No gradient flows into a loss's target, so one that is computed from parameters would silently train wrongly."""
    trained = {p.name for p in graph.parameters}
    for op in graph.ops:
        if op.kind in LOSS_OPS and op.inputs[1] in trained:
            raise ModelError(
                f"loss {op.name}: the target {op.inputs[1]!r} depends on trained parameters; swap the arguments"
            )
        if any(name in trained for name in op.inputs):
            trained.update(op.outputs)


def _scaling(graph: Graph) -> None:
    inputs = {v.name: v for v in graph.inputs}
    for name, scaling in graph.scaling.items():
        if name not in inputs:
            raise ModelError(f"scaling is given for {name!r}, which is no input")
        if inputs[name].dtype != "float32":
            raise ModelError(f"input {name} is {inputs[name].dtype}; only float32 inputs can be scaled")
        _one_scaling(name, inputs[name].shape, scaling)


def _one_scaling(name: str, shape: Shape, scaling: Scaling) -> None:
    lengths = {1, shape[1]} if len(shape) > 1 else {1}
    for what, numbers in (("shift", scaling.shift), ("scale", scaling.scale)):
        if len(numbers) not in lengths:
            wanted = " or ".join(str(n) for n in sorted(lengths))
            raise ModelError(
                f"input {name} of shape {show(shape)}: {what} has {len(numbers)} numbers, but needs {wanted}"
            )
        _finite(f"input {name}: {what}", numbers)


def _initializer(parameter: Parameter) -> None:
    start = parameter.initializer
    if start.kind not in INITIALIZER_KINDS:
        raise ModelError(
            f"parameter {parameter.name} starts with {start.kind!r}; known are {', '.join(INITIALIZER_KINDS)}"
        )
    _finite(f"parameter {parameter.name}: its start", (start.value, start.scale))
    if start.scale < 0:
        raise ModelError(f"parameter {parameter.name}: its start has scale {start.scale}, which must not be negative")


def _finite(what: str, numbers: Iterable[float]) -> None:
    # Beyond float32's range a number would become infinite where it is used.
    if not all(math.isfinite(n) and abs(n) < 3e38 for n in numbers):
        raise ModelError(f"{what} holds a number that is not finite")


def _add(known: dict[str, Value], what: str, value: Value) -> None:
    _name(what, value.name)
    if value.name in known:
        raise ModelError(
            f"the name {value.name!r} is used twice; inputs, parameters and layers share one space of names"
        )
    known[value.name] = value


def _name(what: str, name: str) -> None:
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise ModelError(f"{what} is called {name[:50]!r}; names are 1 to {NAME_CHARACTERS_MAX} printable characters")


def _shape(what: str, shape: Shape) -> None:
    if len(shape) >= RANK_MAX:
        raise ModelError(f"{what} has {len(shape)} axes; with the batch at most {RANK_MAX} are supported")
    if any(extent < 1 for extent in shape):
        raise ModelError(f"{what} has shape {show(shape)}; every extent but the batch must be at least 1")
    if elements(shape) > ELEMENTS_MAX:
        raise ModelError(f"{what} has shape {show(shape)}, more than {ELEMENTS_MAX} elements")
