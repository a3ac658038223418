"""From values to a graph: `Model` collects the ops that its outputs, loss and metrics need, names and verifies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from p2pnn.errors import ModelError
from p2pnn.model import graph as ir
from p2pnn.model.graph import Graph, Op, Parameter
from p2pnn.model.summary import summary
from p2pnn.model.verify import verify
from p2pnn.nn.value import Call, Metric, Owner, Tensor, Value, check_name, join


class Model:
    """A whole model.

    outputs: what `p2pnn predict` gives, by name. loss: a loss function's value, or several, which are summed; none for a
    model that only predicts. metrics: numbers to report, by name. classes: names of the labels 0, 1, …

    Raises ModelError where a name is used twice or the graph is not valid.
    """

    def __init__(
        self,
        outputs: Mapping[str, Value],
        loss: Value | Sequence[Value] = (),
        metrics: Mapping[str, Metric] | None = None,
        *,
        name: str = "model",
        classes: Sequence[str] = (),
    ) -> None:
        check_name(name)
        losses = (loss,) if isinstance(loss, Value) else tuple(loss)
        reported = dict(metrics or {})
        _check(outputs, losses, reported)
        builder = _Builder([*outputs.values(), *losses, *(m.value for m in reported.values())])
        graph = Graph(
            inputs=builder.inputs(),
            parameters=builder.parameters(trained=True),
            state=builder.parameters(trained=False),
            ops=builder.ops(),
            values=builder.values(),
            outputs={key: builder.name(value) for key, value in outputs.items()},
            losses=tuple(builder.name(value) for value in losses),
            metrics=tuple(ir.Metric(key, m.kind, builder.name(m.value), m.goal) for key, m in reported.items()),
            classes=tuple(classes),
            name=name,
        )
        verify(graph)
        self.graph = graph

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The trained parameters' names and shapes."""
        return {p.name: p.shape for p in self.graph.parameters}

    def summary(self, batch: int = 1) -> str:
        """A table of ops: names, shapes, parameters, floating-point operations of one forward pass over `batch` rows."""
        return summary(self.graph, batch)


def _check(outputs: Mapping[str, Value], losses: Iterable[Value], metrics: Mapping[str, Metric]) -> None:
    for key, value in outputs.items():
        check_name(key)
        if not isinstance(value, Value):
            raise ModelError(f"output {key} is a {type(value).__name__}, but must be a value of the model")
    for value in losses:
        if not isinstance(value, Value):
            raise ModelError(f"the loss is a {type(value).__name__}, but must be what a loss function returned")
    for key, metric in metrics.items():
        check_name(key)
        if not isinstance(metric, Metric):
            raise ModelError(f"metric {key} is a {type(metric).__name__}; use nn.accuracy or another metric function")


class _Builder:
    """The ops behind some values, in the order in which they were written, and a name for everything."""

    def __init__(self, targets: Sequence[Value]) -> None:
        found: dict[int, Value] = {}
        stack = list(targets)
        while stack:
            value = stack.pop()
            if id(value) not in found:
                found[id(value)] = value
                if isinstance(value.origin, Call):
                    stack.extend(value.origin.inputs)
        self._values = found
        calls = {id(v.origin): v.origin for v in found.values() if isinstance(v.origin, Call)}
        self._calls = sorted(calls.values(), key=lambda call: call.sequence)
        self._owners = self._name_owners()
        self._names = self._name_calls()

    def name(self, value: Value) -> str:
        """A value's name: an op's first output is called as the op, further ones with `:1`, `:2`, … behind."""
        origin = value.origin
        if isinstance(origin, str):
            return origin
        if isinstance(origin, Tensor):
            owner = self._owners[origin.owner]
            return f"{owner}/{origin.part}" if origin.part else owner
        return self._output(origin, value.position)

    def inputs(self) -> tuple[ir.Value, ...]:
        found = [v for v in self._ordered() if isinstance(v.origin, str)]
        return tuple(ir.Value(self.name(v), v.dtype, v.shape) for v in found)

    def parameters(self, *, trained: bool) -> tuple[Parameter, ...]:
        found = [(v, v.origin) for v in self._ordered() if isinstance(v.origin, Tensor)]
        return tuple(
            Parameter(self.name(v), v.shape, origin.initializer, origin.decay)
            for v, origin in found
            if origin.trained == trained
        )

    def ops(self) -> tuple[Op, ...]:
        return tuple(
            Op(
                call.kind,
                self._names[id(call)],
                tuple(self.name(v) for v in call.inputs),
                tuple(self._output(call, position) for position in range(len(call.made))),
                call.attributes,
            )
            for call in self._calls
        )

    def values(self) -> tuple[ir.Value, ...]:
        return tuple(
            ir.Value(self._output(call, position), dtype, shape)
            for call in self._calls
            for position, (dtype, shape) in enumerate(call.made)
        )

    def _output(self, call: Call, position: int) -> str:
        return f"{self._names[id(call)]}:{position}" if position else self._names[id(call)]

    def _ordered(self) -> list[Value]:
        """All values, by first use."""
        used = [v for call in self._calls for v in call.inputs]
        return list({id(v): v for v in [*used, *self._values.values()]}.values())

    def _name_owners(self) -> dict[Owner, str]:
        owners: dict[Owner, None] = {}
        for call in self._calls:
            for origin in (*(v.origin for v in call.inputs), call):
                if not isinstance(origin, str):
                    owners.setdefault(origin.owner)
        names: dict[Owner, str] = {}
        taken: set[str] = set()
        for owner in owners:
            if owner.name is not None:
                names[owner] = join(owner.scope, owner.name)
                if names[owner] in taken:
                    raise ModelError(
                        f"two layers are called {names[owner]!r}; give one another name, put them into different nn.scope, "
                        f"or call one layer object twice to share its parameters"
                    )
                taken.add(names[owner])
        numbers: dict[str, int] = {}
        for owner in owners:
            if owner.name is None:
                stem = join(owner.scope, owner.stem)
                number = numbers.get(stem, 0) + 1
                while f"{stem}_{number}" in taken:
                    number += 1
                numbers[stem] = number
                names[owner] = f"{stem}_{number}"
        return names

    def _name_calls(self) -> dict[int, str]:
        """An op is called as its layer, with `#part` behind it beside the main one, and `#2` for a second call."""
        names: dict[int, str] = {}
        counts: dict[str, int] = {}
        for call in self._calls:
            plain = self._owners[call.owner] + (f"#{call.part}" if call.part else "")
            counts[plain] = counts.get(plain, 0) + 1
            names[id(call)] = plain if counts[plain] == 1 else f"{plain}#{counts[plain]}"
        return names
