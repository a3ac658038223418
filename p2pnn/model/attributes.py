"""Attributes: what an operator's settings may be, and their canonical form.

Attributes are canonical in every graph: all present, defaults filled in, axes counted from 0, tuples of full length. So two
graphs that mean the same say the same, and kernels ask no questions. A rule checks one attribute by itself; a *resolver*
works out what depends on the input's shape, or on another attribute: a Reshape's −1, a Slice's ends, Attention's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pnn.errors import ModelError
from p2pnn.model.graph import BATCH, Attribute, Value, elements, show

INTEGER_MAX: Final = 2**31 - 1
FLOAT_MAX: Final = 3.4028234663852886e38
"""The largest float32."""
INTEGERS_MAX: Final = 8
"""Entries of a tuple: as many as a value may have axes."""
PARTS_MAX: Final = 1000
"""Parts of a Split: as many as a Concat may join."""


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """What an attribute may be.

    type: `int`, `float`, `ints`, `text`, `axis` (an int from 1 to rank − 1) or `axes` (several, ascending).
    default: None where it must be given. low and high are inclusive; a float's high is exclusive. length: of `ints`, whose
    entries are at most `most`. choices: of `text`.
    """

    type: str
    default: Attribute | None = None
    low: float = 0
    high: float = INTEGER_MAX
    length: int | None = None
    most: int = INTEGERS_MAX
    choices: tuple[str, ...] = ()


Resolver = Callable[[str, dict[str, Attribute], Sequence[Value]], None]
"""(whose attributes, for messages; the attributes, changed in place; the inputs)."""


def canonical(what: str, rule: AttributeRule, value: Any, rank: int) -> Attribute:
    """One attribute in its canonical form. Raises ModelError where it is out of range."""
    if rule.type == "float":
        if type(value) not in (int, float) or not math.isfinite(value) or not rule.low <= value < rule.high:
            raise ModelError(f"{what} is {value!r}, but must be a number from {rule.low:g} to below {rule.high:g}")
        return float(value)
    if rule.type == "text":
        if not isinstance(value, str) or value not in rule.choices:
            raise ModelError(f"{what} is {value!r}, but must be {' or '.join(repr(c) for c in rule.choices)}")
        return value
    if rule.type in ("int", "axis"):
        if type(value) is not int:
            raise ModelError(f"{what} is {value!r}, but must be an integer")
        return _axis(what, value, rank) if rule.type == "axis" else _bounded(what, value, rule)
    if not isinstance(value, tuple | list) or len(value) > rule.most or any(type(n) is not int for n in value):
        raise ModelError(f"{what} is {value!r}, but must be a tuple of at most {rule.most} integers")
    if rule.type == "axes":
        return _axes(what, value, rank)
    if rule.length is not None and len(value) != rule.length:
        raise ModelError(f"{what} is {tuple(value)}, but must have {rule.length} numbers")
    return tuple(_bounded(what, n, rule) for n in value)


def _bounded(what: str, value: int, rule: AttributeRule) -> int:
    if not rule.low <= value <= rule.high:
        raise ModelError(f"{what} holds {value}, but must lie between {rule.low:g} and {rule.high:g}")
    return value


def _axis(what: str, value: int, rank: int) -> int:
    axis = value + rank if value < 0 else value
    if not 1 <= axis < rank:
        raise ModelError(f"{what} is {value}, but the input has axes 0 to {rank - 1}, of which 0 is the batch")
    return axis


def _axes(what: str, value: Sequence[int], rank: int) -> tuple[int, ...]:
    axes = sorted({_axis(what, n, rank) for n in value})
    if len(axes) != len(value) or not axes:
        raise ModelError(f"{what} is {tuple(value)}, but must name one or more different axes")
    return tuple(axes)


def _integers(attributes: dict[str, Attribute], key: str) -> tuple[int, ...]:
    value = attributes[key]
    assert isinstance(value, tuple)
    return tuple(int(n) for n in value)


def reshape(what: str, attributes: dict[str, Attribute], inputs: Sequence[Value]) -> None:
    """ONNX's 0 (copy) and −1 (work out), resolved: (0, extents of a row…)."""
    asked, shape = _integers(attributes, "shape"), inputs[0].shape
    if not shape or shape[0] != BATCH:
        raise ModelError(f"{what}: shape {show(shape)} has no batch at axis 0")
    row = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(asked)][1:]
    size, free = elements(shape[1:]), [i for i, n in enumerate(row) if n == -1]
    known = elements(tuple(n for n in row if n != -1))
    # A leading −1 stands for the batch where the rest already accounts for a whole row.
    ok = bool(asked) and (asked[0] in (0, BATCH)) and known > 0 and len(free) + (asked[0] == -1) <= 1
    if ok and free:
        row[free[0]], rest = divmod(size, known)
        ok = rest == 0
    if not ok or elements(tuple(row)) != size:
        raise ModelError(f"{what}: a value of shape {show(shape)} cannot become {asked}; rows keep their {size} elements, "
                         f"and the batch stays at axis 0")  # fmt: skip
    attributes["shape"] = (0, *row)


def slices(what: str, attributes: dict[str, Attribute], inputs: Sequence[Value]) -> None:
    """Axes ascending; starts and ends counted from 0 and cut to the extents, as numpy does; steps at least 1."""
    axes, starts, ends = (_integers(attributes, key) for key in ("axes", "starts", "ends"))
    steps, shape = _integers(attributes, "steps") or (1,) * len(axes), inputs[0].shape
    if not len(axes) == len(starts) == len(ends) == len(steps):
        raise ModelError(f"{what}: axes {axes}, starts {starts}, ends {ends} and steps {steps} must be equally many")
    if _axes(f"{what}: attribute 'axes'", axes, len(shape)) and min(steps) < 1:
        raise ModelError(f"{what}: steps {steps} must be at least 1; nothing here runs backwards")
    cut = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= len(shape)
        first, last, _ = slice(start, end, step).indices(shape[axis])
        if last <= first:
            raise ModelError(f"{what}: from {start} to {end} at axis {axis} of {show(shape)} there is nothing")
        cut.append((axis, first, last, step))
    for position, key in enumerate(("axes", "starts", "ends", "steps")):
        attributes[key] = tuple(entry[position] for entry in sorted(cut))


def unsqueeze(what: str, attributes: dict[str, Attribute], inputs: Sequence[Value]) -> None:
    """Axes of the output, ascending, counted from 0."""
    axes = _integers(attributes, "axes")
    attributes["axes"] = _axes(f"{what}: attribute 'axes'", axes, len(inputs[0].shape) + len(axes))


def attention(what: str, attributes: dict[str, Attribute], inputs: Sequence[Value]) -> None:
    """As many key heads as query heads unless said; scale 1/√(a head's size) unless said."""
    heads, shape = attributes["q_num_heads"], inputs[0].shape
    assert isinstance(heads, int)
    if not shape or shape[-1] % heads:
        raise ModelError(f"{what}: the queries of shape {show(shape)} do not divide into {heads} heads")
    attributes["kv_num_heads"] = attributes["kv_num_heads"] or heads
    attributes["scale"] = attributes["scale"] or 1.0 / math.sqrt(shape[-1] // heads)
