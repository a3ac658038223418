"""Planning a program: a list of bound kernels, and a place in memory for everything they read and write.

Arrays are named by *registers*, numbers into a list that every frame has for itself. A register is bound

* by the caller, for values and gradients that cross the border, and for parameters, state and accumulators;
* to a frame's own memory, for what backward needs again: kept values and stashes;
* for the rest, which lives only within one call, to a part of the frame's own memory that holds nothing at that time (what
  forward has not filled yet, what backward has done with), or else to memory that all frames share.

Two buffers may overlap in memory unless they overlap in time, counted in ops: n forward, then n backward.

Where a kernel works in place, its output takes over the buffer of its input, if nobody needs that any more. None of this
changes a bit of what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnn.engine.base import Edge
from p2pnn.engine.numpy.edges import Edges
from p2pnn.engine.numpy.kernel import Kernel, Spec, aligned
from p2pnn.engine.numpy.layout import Operand


@dataclass(slots=True, eq=False)
class Buffer:
    """Memory from op position `start` to `end`; kept: from forward to backward of one frame.

    offset: in the frame's own memory (own), or in what frames share.
    """

    nbytes: int
    start: int
    end: int
    kept: bool = False
    own: bool = False
    offset: int = 0


@dataclass(slots=True)
class Place:
    """What a register lies in: a buffer, or another register (a border value written in place)."""

    register: int
    spec: Spec
    buffer: Buffer | None
    border: int = -1


@dataclass(slots=True)
class Forward:
    """One op's forward pass; numbers are registers."""

    kernel: Kernel
    inputs: tuple[int, ...]
    ys: tuple[int, ...]
    stash: tuple[int, ...]


@dataclass(slots=True)
class Total:
    """One output's gradient: `parts`, in graph order, are summed into `dy` where there are several.

    Without parts nothing that a loss sees depends on the output, and `dy` (−1 where no kernel reads it) is zeros.
    """

    parts: tuple[int, ...]
    dy: int


@dataclass(slots=True)
class Backward:
    """One op's backward pass.

    totals: one per output. first, later: where dx goes in a micro-batch that begins a sum and in one that is added (−1:
    nowhere). repeated: (into, from) where the op reads one tensor twice. accumulate: (accumulator, fresh) for the latter.
    newest: position → the fused parameter before its update.
    """

    forward: Forward
    totals: tuple[Total, ...]
    first: tuple[int, ...]
    later: tuple[int, ...]
    repeated: tuple[tuple[int, int], ...]
    accumulate: tuple[tuple[int, int], ...]
    newest: dict[int, int]


@dataclass(slots=True)
class Plan:
    """Everything a program needs to run: see the module's docstring. Offsets in `places` are filled in."""

    forward: list[Forward] = field(default_factory=list)
    backward: list[Backward] = field(default_factory=list)
    registers: int = 0
    values: dict[str, int] = field(default_factory=dict)
    gradients: dict[Edge, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    updates: dict[str, tuple[int, int]] = field(default_factory=dict)
    accumulators: dict[Edge, int] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    shared_bytes: int = 0
    kept_bytes: int = 0


class Planner:
    """Builds one plan: values first, then gradients, then memory."""

    def __init__(
        self,
        edges: Edges,
        operands: dict[int, tuple[tuple[Operand, ...], tuple[Operand, ...]]],
        kernels: dict[int, Kernel],
        micro_batches: int,
    ) -> None:
        self._edges, self._operands, self._kernels = edges, operands, kernels
        self._alone = micro_batches == 1  # then nothing is ever added to an accumulator
        self._position = {index: n for n, index in enumerate(edges.ops)}
        self._plan = Plan()
        self._local: dict[str | Edge, int] = {}
        self._placed: dict[int, Place] = {}

    def plan(self) -> Plan:
        """The whole plan."""
        plan = self._plan
        for value in (*self._edges.values_in, *self._edges.values_out):
            plan.values[value] = self._register()
        for edge in (*self._edges.gradients_in, *self._edges.gradients_out):
            plan.gradients[edge] = self._register()
        for index in self._edges.ops:
            self._forward(index)
        for index in reversed(self._edges.trained):
            self._backward(index)
        buffers = {id(p.buffer): p.buffer for p in plan.places if p.buffer is not None}.values()
        kept = [b for b in buffers if b.kept]
        plan.kept_bytes = _stack(kept)
        plan.shared_bytes = _overlay([b for b in buffers if not b.kept], kept, plan.kept_bytes)
        return plan

    # Forward

    def _forward(self, index: int) -> None:
        kernel, (inputs, outputs) = self._kernels[index], self._operands[index]
        registers = tuple(self._input(operand) for operand in inputs)
        ys = tuple(self._output(index, inputs, output) for output in outputs)
        span = self._position[index], self._backward_position(index)
        stash = tuple(self._new(spec, Buffer(spec.nbytes, *span, kept=True)) for spec in kernel.stash)
        self._plan.forward.append(Forward(kernel, registers, ys, stash))

    def _input(self, operand: Operand) -> int:
        if operand.kind != "value":
            if operand.name not in self._plan.held:
                self._plan.held[operand.name] = self._register()
            return self._plan.held[operand.name]
        return self._local[operand.name] if operand.name in self._local else self._plan.values[operand.name]

    def _output(self, index: int, inputs: tuple[Operand, ...], output: Operand) -> int:
        spec, name = Spec(output.shape, output.dtype), output.name
        position, readers = self._position[index], self._edges.readers(name)
        again = self._read_again(index, name, readers)
        kept = bool(again)
        end = max(again or [position, *(self._position[reader] for reader in readers)])
        over = self._overwritten(index, inputs, spec) if name == self._operands[index][1][0].name else None
        if name in self._plan.values:
            register = self._plan.values[name]
            if over is not None:
                self._move_to_border(over, register)
        elif over is not None:
            assert over.buffer is not None
            over.buffer.end, over.buffer.kept = end, kept
            register = self._new(spec, over.buffer)
        else:
            register = self._new(spec, Buffer(spec.nbytes, position, end, kept))
        self._local[name] = register
        return register

    def _read_again(self, index: int, name: str, readers: list[int]) -> list[int]:
        """Where backward passes read an output: its own op's, and those of ops that keep it as an input."""
        trained, operands = set(self._edges.trained), self._operands
        found = [index] if index in trained and self._kernels[index].keeps_output else []
        for reader in readers:
            kept = (operands[reader][0][position].name for position in self._kernels[reader].keeps)
            if reader in trained and name in kept:
                found.append(reader)
        return [self._backward_position(op) for op in found]

    def _backward_position(self, index: int) -> int:
        return 2 * len(self._edges.ops) - 1 - self._position[index]

    def _overwritten(self, index: int, inputs: tuple[Operand, ...], spec: Spec) -> Place | None:
        """The first input's place, if the op may write its output there."""
        if not self._kernels[index].in_place:
            return None
        place = self._placed.get(self._local.get(inputs[0].name, -1))
        if place is None or place.buffer is None or place.buffer.kept:
            return None
        fits = place.spec.nbytes == spec.nbytes and place.spec.dtype == spec.dtype
        return place if fits and place.buffer.end == self._position[index] else None

    def _move_to_border(self, over: Place, register: int) -> None:
        """What shared this buffer lies in the border array from now on, which is written last."""
        buffer = over.buffer
        for place in self._plan.places:
            if place.buffer is buffer:
                place.buffer, place.border = None, register

    # Backward

    def _backward(self, index: int) -> None:
        kernel, (inputs, outputs) = self._kernels[index], self._operands[index]
        position = self._backward_position(index)
        totals = self._totals(outputs, position)
        dy = totals[0].dy
        first: list[int] = []
        later: list[int] = []
        repeated: list[tuple[int, int]] = []
        accumulate: list[tuple[int, int]] = []
        newest: dict[int, int] = {}
        seen: dict[str, int] = {}
        for n, (operand, wanted) in enumerate(zip(inputs, self._edges.wants(index), strict=True)):
            spec = Spec(operand.shape, operand.dtype)
            if not wanted:
                first.append(-1)
                later.append(-1)
            elif n in kernel.site.fused:
                newest[n], new = self._plan.updates[operand.name] = self._register(), self._register()
                first.append(new)
                later.append(new)
            elif operand.name in seen:
                extra = self._new(spec, Buffer(spec.nbytes, position, position))
                earlier = seen[operand.name]
                repeated.append((earlier, extra))
                first.append(extra)
                later.append(extra)
            elif operand.kind == "parameter":
                total = fresh = self._plan.accumulators[operand.name, index] = self._register()
                if not self._alone:
                    fresh = self._new(spec, Buffer(spec.nbytes, position, position))
                    accumulate.append((total, fresh))
                seen[operand.name] = n
                first.append(total)
                later.append(fresh)
            else:
                over = self._placed.get(dy) if n == 0 and kernel.in_place_backward else None
                register = self._edge(operand, index, position, over)
                seen[operand.name] = n
                first.append(register)
                later.append(register)
        forward = self._plan.forward[self._position[index]]
        self._plan.backward.append(
            Backward(forward, totals, tuple(first), tuple(later), tuple(repeated), tuple(accumulate), newest)
        )

    def _totals(self, outputs: tuple[Operand, ...], position: int) -> tuple[Total, ...]:
        parts = [self._parts(output.name) for output in outputs]
        if not any(parts):
            return tuple(Total((), -1) for _ in outputs)
        return tuple(
            Total(
                found,
                found[0]
                if len(found) == 1
                else self._new(Spec(output.shape, output.dtype), Buffer(output.nbytes, position, position)),
            )
            for found, output in zip(parts, outputs, strict=True)
        )

    def _parts(self, value: str) -> tuple[int, ...]:
        parts: list[int] = []
        if value in self._edges.graph.losses:
            parts.append(self._register())
            self._plan.seeds.append(parts[0])
        for edge in self._edges.sources(value):
            parts.append(self._local[edge] if edge in self._local else self._plan.gradients[edge])
        return tuple(parts)

    def _edge(self, operand: Operand, index: int, position: int, over: Place | None) -> int:
        """Where the gradient of one edge goes: to the border, or to the value's producer in this segment."""
        edge = (operand.name, index)
        if edge in self._plan.gradients:
            return self._plan.gradients[edge]
        spec = Spec(operand.shape, operand.dtype)
        producer = self._edges.flow.producer[operand.name]
        end = self._backward_position(producer)
        if over is not None and over.buffer is not None and over.spec.nbytes == spec.nbytes:
            over.buffer.end = end
            self._local[edge] = self._new(spec, over.buffer)
        else:
            self._local[edge] = self._new(spec, Buffer(spec.nbytes, position, end))
        return self._local[edge]

    # Registers and memory

    def _register(self) -> int:
        self._plan.registers += 1
        return self._plan.registers - 1

    def _new(self, spec: Spec, buffer: Buffer) -> int:
        register = self._register()
        place = Place(register, spec, buffer)
        self._placed[register] = place
        self._plan.places.append(place)
        return register


def _stack(buffers: list[Buffer]) -> int:
    """Lay kept buffers behind each other; returns the bytes they take."""
    total = 0
    for buffer in buffers:
        buffer.own, buffer.offset = True, total
        total = aligned(total + buffer.nbytes)
    return total


def _overlay(buffers: list[Buffer], kept: list[Buffer], kept_bytes: int) -> int:
    """Lay buffers so that those alive together do not overlap: largest first, each at the lowest free offset of the frame's
    own memory, which does not grow, or else of shared memory. Returns the bytes that are to be shared."""
    own, shared = list(kept), list[Buffer]()
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.start)):
        buffer.offset = _lowest(buffer, own)
        buffer.own = buffer.offset + buffer.nbytes <= kept_bytes
        if buffer.own:
            own.append(buffer)
            continue
        buffer.offset = _lowest(buffer, shared)
        shared.append(buffer)
        total = max(total, aligned(buffer.offset + buffer.nbytes))
    return total


def _lowest(buffer: Buffer, laid: list[Buffer]) -> int:
    """The lowest offset at which the buffer overlaps nothing that is alive while it is."""
    offset = 0
    for other in sorted(laid, key=lambda b: b.offset):
        if other.start > buffer.end or other.end < buffer.start:
            continue
        if offset + buffer.nbytes <= other.offset:
            break
        offset = max(offset, aligned(other.offset + other.nbytes))
    return offset
