"""Values: tensors of a model that is being written. They know shape, dtype and origin, but hold no numbers.

Names are given late, by `nn.Model`: until then an op only knows its *owner* (a layer, or one call of a function), which
knows its scope and, perhaps, its name. So the same function can build a model twice in one process.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from p2pnn.errors import ModelError
from p2pnn.model import graph as ir
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Initializer, Shape, show

Operand: TypeAlias = "Value | float"
"""What stands beside a value of a model in arithmetic."""

_scope: ContextVar[str] = ContextVar("scope", default="")
_sequence = itertools.count()
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """What names ops and parameters: a layer or one call of a function. stem: what it is called where name is None."""

    scope: str
    name: str | None
    stem: str

    @classmethod
    def here(cls, name: str | None, stem: str) -> Owner:
        """An owner in the current scope. Raises ModelError for a name with odd characters."""
        if name is not None:
            check_name(name)
        return cls(_scope.get(), name, stem)

    def __str__(self) -> str:
        return join(self.scope, self.name or self.stem)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Where a parameter comes from; `part` is `weight`, `bias`, … and trained is False for state."""

    owner: Owner
    part: str
    initializer: Initializer
    decay: bool
    trained: bool


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Where an op's outputs come from: their (dtype, shape) are in `made`. part: which op of an owner that makes several,
    `` for its main one."""

    sequence: int
    kind: str
    inputs: tuple[Value, ...]
    attributes: dict[str, ir.Attribute]
    owner: Owner
    part: str
    made: tuple[tuple[str, Shape], ...]


class Value:
    """A tensor of a model that is being written: `shape` (with `nn.BATCH` at axis 0) and `dtype`, and no numbers.

    Made by `nn.Input`, layers and functions. `+`, `-`, `*`, `/`, `**` and `@` are ops with numpy's broadcasting; but for `@`
    one side may be a number, which is saved with the model and not trained. `x[:, 1:3, ::2, 0]` takes slices, never of the
    batch.
    """

    __slots__ = ("dtype", "origin", "position", "shape")
    __array_ufunc__ = None

    def __init__(self, shape: Shape, dtype: str, origin: Call | Tensor | str, position: int = 0) -> None:
        self.shape = shape
        self.dtype = dtype
        self.origin = origin
        self.position = position  # among an op's outputs

    @property
    def label(self) -> str:
        """A name for messages, before names are given."""
        if isinstance(self.origin, str):
            return self.origin
        owner, part = str(self.origin.owner), self.origin.part
        return f"{owner}/{part}" if part and isinstance(self.origin, Tensor) else owner

    def __repr__(self) -> str:
        return f"<nn.Value {self.label} {self.dtype}{show(self.shape)}>"

    def __add__(self, other: Operand) -> Value:
        return _arithmetic("Add", "add", "+", self, other)

    def __sub__(self, other: Operand) -> Value:
        return _arithmetic("Sub", "sub", "-", self, other)

    def __mul__(self, other: Operand) -> Value:
        return _arithmetic("Mul", "mul", "*", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return _arithmetic("Div", "div", "/", self, other)

    def __pow__(self, other: Operand) -> Value:
        return _arithmetic("Pow", "pow", "**", self, other)

    def __matmul__(self, other: Value) -> Value:
        return _arithmetic("MatMul", "matmul", "@", self, other)

    def __radd__(self, other: float) -> Value:
        return _arithmetic("Add", "add", "+", other, self)

    def __rsub__(self, other: float) -> Value:
        return _arithmetic("Sub", "sub", "-", other, self)

    def __rmul__(self, other: float) -> Value:
        return _arithmetic("Mul", "mul", "*", other, self)

    def __rtruediv__(self, other: float) -> Value:
        return _arithmetic("Div", "div", "/", other, self)

    def __rpow__(self, other: float) -> Value:
        return _arithmetic("Pow", "pow", "**", other, self)

    def __rmatmul__(self, other: object) -> Value:
        return _arithmetic("MatMul", "matmul", "@", other, self)

    def __neg__(self) -> Value:
        return call("Neg", Owner.here(None, "neg"), (self,))

    def __getitem__(self, index: object) -> Value:
        return _indexed(self, index)

    def _no_numbers(self) -> NoReturn:
        raise ModelError(
            f"{self.label} is a value of a model and holds no numbers while the model is written, so it cannot be tested "
            f"or converted; decide by value.shape, and get numbers with p2pnn predict"
        )

    def __bool__(self) -> bool:
        self._no_numbers()

    def __float__(self) -> float:
        self._no_numbers()

    def __int__(self) -> int:
        self._no_numbers()

    def __array__(self, *arguments: object, **keywords: object) -> NoReturn:
        self._no_numbers()

    def __iter__(self) -> Iterator[Value]:
        self._no_numbers()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric op's output with the way its total becomes a number (see `model.graph.Metric`)."""

    value: Value
    kind: str
    goal: str


def Input(name: str, shape: Sequence[int], dtype: str = "float32") -> Value:
    """A column of the data. shape: of one row, () for a number per row; the batch is implied.

    dtype: `float32`, `int64` for labels and indices, or `bool` for conditions.
    """
    check_name(name)
    extents = _extents(name, shape)
    if dtype not in ("float32", "int64", "bool"):
        raise ModelError(
            f"input {name} has dtype {dtype!r}; use 'float32' (numbers are converted), 'int64' for labels and indices, or "
            f"'bool' for conditions"
        )
    return Value((BATCH, *extents), dtype, name)


def parameter(
    name: str, shape: Sequence[int], *, value: float = 0.0, scale: float = 0.0, std: float = 0.0, decay: bool = True
) -> Value:
    """A trained tensor of its own: all `value`, or, where scale > 0, uniform in ±scale, or, where std > 0, normal with this
    standard deviation. It has no batch."""
    initializer = Initializer("uniform", scale=scale) if scale > 0 else Initializer("constant", value=value)
    if std > 0:
        initializer = Initializer("normal", scale=std)
    return tensor(Owner.here(name, "parameter"), "", _extents(name, shape), initializer, decay=decay)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Put `name/` before the names of the layers that are made inside. Scopes nest."""
    for part in name.split("/"):
        check_name(part)
    token = _scope.set(join(_scope.get(), name))
    try:
        yield
    finally:
        _scope.reset(token)


def tensor(
    owner: Owner, part: str, shape: Shape, initializer: Initializer, *, decay: bool = True, trained: bool = True
) -> Value:
    """A parameter (or, where not trained, state) as a value."""
    return Value(shape, "float32", Tensor(owner, part, initializer, decay and trained, trained))


def call(kind: str, owner: Owner, inputs: Sequence[Value], part: str = "", **attributes: Any) -> Value:
    """Note one op and return its only output. Raises ModelError where attributes or shapes do not fit."""
    (value,) = calls(kind, owner, inputs, part, **attributes)
    return value


def calls(kind: str, owner: Owner, inputs: Sequence[Value], part: str = "", **attributes: Any) -> tuple[Value, ...]:
    """Note one op and return its outputs. Raises ModelError where attributes or shapes do not fit."""
    for value in inputs:
        if not isinstance(value, Value):
            raise ModelError(
                f"{owner} ({kind}) was given a {type(value).__name__}, but takes values: nn.Input or what a layer returned"
            )
    described = [ir.Value(v.label, v.dtype, v.shape) for v in inputs]
    canonical = ops.normalise(kind, str(owner), attributes, described)
    made = tuple(ops.infer(ir.Op(kind, str(owner), (), (), canonical), described))
    origin = Call(next(_sequence), kind, tuple(inputs), canonical, owner, part, made)
    return tuple(Value(shape, dtype, origin, position) for position, (dtype, shape) in enumerate(made))


def join(scope: str, name: str) -> str:
    """`scope/name`, or the name alone at the top."""
    return f"{scope}/{name}" if scope else name


def check_name(name: object) -> None:
    """Raise ModelError unless name is letters, digits, `_`, `.` and `-`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is not a name; use letters, digits, '_', '.' and '-'")


def _extents(name: str, shape: object) -> Shape:
    if not isinstance(shape, list | tuple) or any(type(n) is not int or n < 1 for n in shape):
        raise ModelError(f"{name} has shape {shape!r}; give a tuple of positive integers, without the batch")
    return tuple(shape)


def _arithmetic(kind: str, stem: str, sign: str, *sides: object) -> Value:
    owner = Owner.here(None, stem)
    return call(kind, owner, [_side(owner, sign, side) for side in sides])


def _side(owner: Owner, sign: str, side: object) -> Value:
    if isinstance(side, Value):
        return side
    number = isinstance(side, int | float) and not isinstance(side, bool) and math.isfinite(side)
    if not number or sign == "@":
        raise ModelError(
            f"'{sign}' joins two values of a model{'' if sign == '@' else ', or one and a finite number'}, but one side is a "
            f"{type(side).__name__}; for a tensor to be trained use nn.parameter(name, shape, value=…)"
        )
    return tensor(owner, "number", (1,), Initializer("constant", value=float(side)), trained=False)  # type: ignore[arg-type]


def _indexed(x: Value, index: object) -> Value:
    """A Slice, and a Squeeze of the axes that an integer takes away."""
    owner = Owner.here(None, "slice")
    entries = index if isinstance(index, tuple) else (index,)
    if entries.count(Ellipsis) == 1:
        at = entries.index(Ellipsis)
        entries = (*entries[:at], *[slice(None)] * (len(x.shape) - len(entries) + 1), *entries[at + 1 :])
    fitting = all(type(e) is int or (isinstance(e, slice) and _whole(e)) for e in entries)
    if not fitting or len(entries) > len(x.shape) or not entries or entries[0] != slice(None):
        raise ModelError(
            f"{owner}: {x.label} of shape {show(x.shape)} cannot be indexed by {index!r}; begin with ':' for the batch, and "
            f"take slices of whole numbers, or single ones, of the axes behind it"
        )
    chosen = [(axis, e) for axis, e in enumerate(entries) if e != slice(None)]
    if not chosen:
        return x
    for axis, e in chosen:
        if type(e) is int and not -x.shape[axis] <= e < x.shape[axis]:
            raise ModelError(f"{owner}: there is no {e} at axis {axis} of {x.label}, whose shape is {show(x.shape)}")
    bounds = [(e, e + 1 or _END, 1) if type(e) is int else _bounds(e) for _, e in chosen]
    starts, ends, steps = zip(*bounds, strict=True)
    cut = call("Slice", owner, (x,), axes=tuple(a for a, _ in chosen), starts=starts, ends=ends, steps=steps)
    single = tuple(axis for axis, e in chosen if type(e) is int)
    return call("Squeeze", owner, (cut,), "squeeze", axes=single) if single else cut


_END: Final = 2**31 - 1


def _whole(entry: slice) -> bool:
    return all(n is None or type(n) is int for n in (entry.start, entry.stop, entry.step))


def _bounds(entry: object) -> tuple[int, int, int]:
    assert isinstance(entry, slice)
    return entry.start or 0, _END if entry.stop is None else entry.stop, 1 if entry.step is None else entry.step
