"""What gradients and parameters travel as: float32, bfloat16, int8 or the largest few, and error feedback around the lossy ones.

    float32   4 bytes per element
    bfloat16  2: the upper half of a float32, rounded to nearest, ties to even; what is too large becomes the largest finite one
    int8      1 + 4/256: blocks of 256, each with its scale absmax/127 and round(x / scale), ties to even. Scales first
    top-k     6 per element that is sent: of each block of 65,536 the k = ⌈fraction · size⌉ elements that are largest in
              absolute value, as their places (uint16, ascending) and then their values, block after block

Numbers are little-endian. An encoder and its decoder know the count, so nothing but the numbers is in the bytes and the sizes
are exact in advance (`Codec.byte_count`).

*Error feedback* (Seide et al. 2014; Karimireddy et al. 2019): what rounding lost in one push is added to the next, e = x + r,
send Q(e), r ← e − Q(e). So nothing is lost for good: what was sent and the residual add up to what was given. For bfloat16 and
top-k, r is exact, as the bits below the cut; for int8 it is off by at most half a last place of itself. Adding r to x rounds once
per push, to 2⁻²⁴ of the sum.

NaN and infinities are not hidden: an int8 block with one gets the scale NaN and decodes to NaN, bfloat16 and float32 pass
them on, top-k takes them for the largest. So the receiver's guard finds them and names the sender. Feedback then leaves the
residual as it was: a NaN in it would never go away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pnn.errors import UsageError
from p2pnn.ps.norms import norm_squared
from p2pnn.ps.space import Flat

Bytes = NDArray[np.uint8]

Buffer = Callable[[int], Bytes]
"""count → uint8[count]: memory for what is sent, from an arena or, as `new` makes it, this process's own."""


def new(nbytes: int) -> Bytes:
    """uint8[nbytes] of this process, with any content."""
    return np.empty(nbytes, np.uint8)


assert sys.byteorder == "little", "the codecs view numbers as they travel"

BLOCK: Final = 16_384
"""Elements that are worked on at a time: input, scratch and output stay in a first- or second-level cache."""

INT8_BLOCK: Final = 256
TOP_BLOCK: Final = 65_536
"""As many places as a uint16 can name."""

TINY: Final = np.float32(2.0**-100)
"""A block whose largest element is smaller is sent as zeros: its scale would be too close to the denormals to divide by."""

HUGE: Final = np.float32(2.0**128 / 127 * (1 - 2.0**-23))
"""The largest scale: 127 of it are still finite."""


class Codec(Protocol):
    """Stateless but for scratch. name: as a person writes it."""

    name: str

    def byte_count(self, count: int) -> int:
        """Exactly how many bytes `count` elements take."""

    def encode(self, x: Flat, out: Bytes) -> None:
        """float32[count] → uint8[byte_count(count)], which is overwritten whole. x is only read."""

    def decode(self, data: Bytes, out: Flat) -> None:
        """The inverse: out, float32[count], is overwritten whole; any bytes decode to something."""


def _blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class Float32:
    name = "float32"

    def byte_count(self, count: int) -> int:
        return 4 * count

    def encode(self, x: Flat, out: Bytes) -> None:
        np.copyto(out, x.view(np.uint8))

    def decode(self, data: Bytes, out: Flat) -> None:
        np.copyto(out.view(np.uint8), data)


class BFloat16:
    name = "bf16"

    def __init__(self) -> None:
        self._bits = np.empty(BLOCK, np.uint32)
        self._odd = np.empty(BLOCK, np.uint32)
        self._special = np.empty(BLOCK, np.bool_)

    def byte_count(self, count: int) -> int:
        return 2 * count

    def encode(self, x: Flat, out: Bytes) -> None:
        bits, halves = x.view(np.uint32), out.view("<u2")
        for block in _blocks(x.size):
            self._round(bits[block], halves[block])

    def _round(self, x: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
        """Nearest even: add 0x7fff and the lowest bit that stays, then cut. NaN and infinities (exponent all ones) are only cut,
        with a bit set that keeps a NaN one; a finite number that would be rounded to infinity becomes the largest."""
        bits, odd, special = self._bits[: x.size], self._odd[: x.size], self._special[: x.size]
        np.right_shift(x, 16, out=odd)
        np.bitwise_and(odd, 1, out=odd)
        np.add(x, 0x7FFF, out=bits)
        np.add(bits, odd, out=bits)
        np.right_shift(bits, 16, out=bits)
        np.copyto(out, bits, casting="unsafe")
        np.bitwise_and(bits, 0x7F80, out=odd)
        np.equal(odd, 0x7F80, out=special)
        np.bitwise_and(x, 0x7F80_0000, out=odd)
        special |= odd == 0x7F80_0000  # a NaN's carry may have gone through its exponent
        if special.any():
            given = x[special]
            rounded = (given >> 16) & 0x8000 | 0x7F7F
            infinite = (given & 0x7FFF_FFFF) == 0x7F80_0000
            rounded[infinite] = given[infinite] >> 16
            nan = (given & 0x7FFF_FFFF) > 0x7F80_0000
            rounded[nan] = given[nan] >> 16 | 0x40
            out[special] = rounded

    def decode(self, data: Bytes, out: Flat) -> None:
        halves, bits = data.view("<u2"), out.view(np.uint32)
        for block in _blocks(out.size):
            np.left_shift(halves[block], 16, out=bits[block], dtype=np.uint32)


class Int8:
    name = "int8"

    def __init__(self) -> None:
        self._scratch = np.empty(BLOCK, np.float32)

    def byte_count(self, count: int) -> int:
        return 4 * -(-count // INT8_BLOCK) + count

    def _parts(self, data: Bytes, count: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        scales = 4 * -(-count // INT8_BLOCK)
        return data[:scales].view("<f4"), data[scales:].view(np.int8)

    def encode(self, x: Flat, out: Bytes) -> None:
        scales, values = self._parts(out, x.size)
        whole = x.size - x.size % INT8_BLOCK
        for block in _blocks(whole):
            rows = x[block].reshape(-1, INT8_BLOCK)
            some = slice(block.start // INT8_BLOCK, block.stop // INT8_BLOCK)
            self._quantize(rows, scales[some], values[block].reshape(rows.shape))
        if whole < x.size:
            self._quantize(x[None, whole:], scales[-1:], values[None, whole:])

    def _quantize(self, x: Flat, scales: Flat, out: NDArray[np.int8]) -> None:
        """x: [blocks, elements], one scale each."""
        work = self._scratch[: x.size].reshape(x.shape)
        largest = np.max(np.abs(x, out=work), axis=1)
        finite = np.isfinite(largest)
        np.minimum(np.divide(largest, np.float32(127), out=scales), HUGE, out=scales)
        scales[largest < TINY] = 0
        scales[~finite] = np.nan
        usable = np.where(finite & (scales > 0), scales, np.float32(np.inf))  # x / ∞ = 0
        if not finite.all():
            x = np.where(finite[:, None], x, np.float32(0))
        np.divide(x, usable[:, None], out=work)
        np.rint(work, out=work)
        np.clip(work, -127, 127, out=work)
        np.copyto(out, work, casting="unsafe")

    def decode(self, data: Bytes, out: Flat) -> None:
        scales, values = self._parts(data, out.size)
        whole = out.size - out.size % INT8_BLOCK
        for block in _blocks(whole):
            some = slice(block.start // INT8_BLOCK, block.stop // INT8_BLOCK)
            rows = values[block].reshape(-1, INT8_BLOCK)
            self._restore(rows, scales[some], out[block].reshape(rows.shape))
        if whole < out.size:
            self._restore(values[None, whole:], scales[-1:], out[None, whole:])

    def _restore(self, values: NDArray[np.int8], scales: Flat, out: Flat) -> None:
        np.multiply(values, scales[:, None], out=out, dtype=np.float32)


class TopK:
    """fraction: of each block, above 0 and at most 1."""

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise UsageError(f"top-k of a fraction {fraction:g}: it must be above 0 and at most 1, such as 0.01")
        self.name = f"top:{fraction:g}"
        self._fraction = fraction
        self._magnitude = np.empty(TOP_BLOCK, np.float32)

    def _kept(self, size: int) -> int:
        return min(size, int(np.ceil(self._fraction * size)))

    def byte_count(self, count: int) -> int:
        whole, rest = divmod(count, TOP_BLOCK)
        return 6 * (whole * self._kept(TOP_BLOCK) + self._kept(rest))

    def _places(self, data: Bytes, count: int) -> Iterator[tuple[slice, NDArray[np.uint16], NDArray[Any]]]:
        at = 0
        for block in _blocks(count, TOP_BLOCK):
            kept = self._kept(block.stop - block.start)
            values = data[at + 2 * kept : at + 6 * kept].view("<f4")
            yield block, data[at : at + 2 * kept].view("<u2"), values
            at += 6 * kept

    def encode(self, x: Flat, out: Bytes) -> None:
        for block, places, values in self._places(out, x.size):
            part = x[block]
            size = np.abs(part, out=self._magnitude[: part.size])
            chosen = np.argpartition(size, part.size - places.size)[part.size - places.size :]  # NaN sorts as largest
            chosen.sort()
            places[:] = chosen
            values[:] = part[chosen]

    def decode(self, data: Bytes, out: Flat) -> None:
        out.fill(0)
        for block, places, values in self._places(data, out.size):
            part = out[block]
            part[np.minimum(places, part.size - 1)] = values  # a place behind the end can only be hostile


def codec(name: str) -> Codec:
    """The codec that a person names: float32, bf16, int8, or top:FRACTION. Raises UsageError for anything else."""
    plain: dict[str, type[Float32] | type[BFloat16] | type[Int8]] = {"float32": Float32, "bf16": BFloat16, "int8": Int8}
    if name in plain:
        return plain[name]()
    kind, _, number = name.partition(":")
    try:
        if kind == "top":
            return TopK(float(number))
    except ValueError:
        pass
    raise UsageError(
        f"there is no compression {name[:40]!r}: write float32, bf16, int8, or top:0.01 for the largest hundredth"
    )


class Feedback:
    """Error feedback around a codec, for one stream of arrays of one size. residual: float32[count], what is still owed."""

    def __init__(self, codec: Codec, count: int) -> None:
        self._codec = codec
        self.residual = np.zeros(count, np.float32)
        self._given = np.empty(count, np.float32)

    def encode(self, x: Flat, out: Bytes) -> None:
        """Send x and what is owed; see `Codec.encode`. Where x is not finite the residual stays as it was."""
        if not np.isfinite(norm_squared(x)) and not np.isfinite(x).all():
            self._codec.encode(x, out)
            return
        given, residual = self._given, self.residual
        np.add(x, residual, out=given)
        self._codec.encode(given, out)
        self._codec.decode(out, residual)
        np.subtract(given, residual, out=residual)


class Deltas:
    """The sender of a stream of versions of one array, each as its difference to what the receiver holds.

    The difference is taken to `held`, the receiver's copy as it must be now, so it includes all that earlier rounding lost.
    number: of the last message; the receiver says which it has, and gets the whole array (as float32) where that is not
    the last one (the first time, or since one was lost). buffer: for `held`, which is sent from where it lies.
    """

    def __init__(self, codec: Codec, count: int, buffer: Buffer = new) -> None:
        self._codec = codec
        self.number = 0
        self.held = buffer(4 * count).view(np.float32)
        self._delta = np.empty(count, np.float32)

    def follows(self, have: int, behind: int = 0) -> bool:
        """Whether a receiver that had message `have` when it spoke can be sent a difference. behind: how many messages may have
        been under way to it then; if one of them does not arrive, it finds that the difference is not the next one."""
        return 0 < have <= self.number <= have + behind

    def encode(self, x: Flat, out: Bytes) -> None:
        """The next message for a receiver that has the last one. out: uint8[codec.byte_count(count)]."""
        self.number += 1
        np.subtract(x, self.held, out=self._delta)
        self._codec.encode(self._delta, out)
        self._codec.decode(out, self._delta)
        np.add(self.held, self._delta, out=self.held)

    def restart(self, x: Flat) -> Bytes:
        """The next message, whole, for a receiver that has anything: uint8[4 · count], good until the next one is made."""
        self.number += 1
        np.copyto(self.held, x)
        return self.held.view(np.uint8)


class Mirror:
    """The receiver of `Deltas`: `values` follows the sender's `held`, bit for bit."""

    def __init__(self, codec: Codec, count: int) -> None:
        self._codec = codec
        self.number = 0
        self.values = np.zeros(count, np.float32)
        self._delta = np.empty(count, np.float32)

    def add(self, data: Bytes, number: int) -> bool:
        """Take a difference; False, and nothing is taken, where it is not the next one."""
        if number != self.number + 1 or not self.number:
            return False
        self._codec.decode(data, self._delta)
        np.add(self.values, self._delta, out=self.values)
        self.number = number
        return True

    def restart(self, data: Bytes, number: int) -> bool:
        """Take a whole array; False where it is older than what is here."""
        if number <= self.number:
            return False
        np.copyto(self.values.view(np.uint8), data)
        self.number = number
        return True
