"""The BLAS calls that numpy does not offer: C ← α·A·B + β·C, accumulating into C, and y ← α·x + β·y in one pass.

numpy's wheels carry OpenBLAS; its `cblas_sgemm` and `cblas_saxpby` are called where they can be found, through ctypes, on the
very arrays that numpy holds (a product costs half a microsecond more than by numpy). Elsewhere the product goes to scratch and
is added. The two differ in the last bits, so which one is used is part of the numeric fingerprint (`name`).

Operands are matrices whose rows, or whose columns (a transposed view), are contiguous; C's rows are.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import threadpoolctl

from p2pnn.engine.numpy.layout import Array

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_ALPHA, _BETA = 6, 11
"""Positions among gemm's arguments."""

_SYMBOLS: Final = (  # with 64-bit integers and numpy's prefix first: what the wheels carry
    ("scipy_cblas_{}64_", ctypes.c_int64),
    ("cblas_{}64_", ctypes.c_int64),
    ("scipy_cblas_{}", ctypes.c_int),
    ("cblas_{}", ctypes.c_int),
)


@dataclass(frozen=True, slots=True)
class _Entries:
    """One dtype's functions."""

    gemm: Any
    axpby: Any


def _find() -> tuple[str, dict[str, _Entries]]:
    """The BLAS that numpy has loaded: (the symbols' pattern, entry points by dtype); ("numpy", {}) where there is none."""
    np.matmul(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] != "blas":
            continue
        with contextlib.suppress(OSError):
            handle = ctypes.CDLL(library["filepath"])
            for pattern, integer in _SYMBOLS:
                if all(hasattr(handle, pattern.format(n)) for n in ("sgemm", "dgemm", "saxpby", "daxpby")):
                    return pattern, {
                        "float32": _declare(handle, pattern, "s", integer, ctypes.c_float),
                        "float64": _declare(handle, pattern, "d", integer, ctypes.c_double),
                    }
    return "numpy", {}


def _declare(handle: Any, pattern: str, letter: str, integer: Any, number: Any) -> _Entries:
    gemm, axpby = (getattr(handle, pattern.format(letter + function)) for function in ("gemm", "axpby"))
    choice, address = ctypes.c_int, ctypes.c_void_p
    gemm.argtypes = [
        *(choice, choice, choice, integer, integer, integer),
        *(number, address, integer, address, integer, number, address, integer),
    ]
    axpby.argtypes = [integer, number, address, integer, number, address, integer]
    gemm.restype = axpby.restype = None
    return _Entries(gemm, axpby)


name, _entries = _find()
"""What accumulates: the BLAS symbols' pattern, or `numpy`."""


def accumulates(dtype: np.dtype[Any]) -> bool:
    """Whether products of this dtype accumulate in place; else each takes scratch of C's size."""
    return dtype.name in _entries


def combine(alpha: float, x: Array, beta: float, y: Array) -> None:
    """y ← α·x + β·y for flat, contiguous arrays of one length and dtype.

    Every element is rounded in the same way wherever it stands, so the bits do not depend on how an array is cut.
    """
    entries = _entries.get(y.dtype.name)
    if entries is not None:
        entries.axpby(y.size, alpha, x.ctypes.data, 1, beta, y.ctypes.data, 1)
        return
    if beta == 0.0:
        np.multiply(x, alpha, out=y)
        return
    if beta != 1.0:
        np.multiply(y, beta, out=y)
    np.add(y, np.multiply(x, alpha), out=y)


class Product:
    """C ← α·A·B + β·C for arrays that stay in place: everything but α and β is worked out once.

    a [m, k], b [k, n], c [m, n] of one floating dtype; scratch: [m, n], used only where no BLAS is found.
    """

    __slots__ = ("_a", "_arguments", "_b", "_c", "_entry", "_scratch", "_tail")

    def __init__(self, a: Array, b: Array, c: Array, scratch: Array | None = None) -> None:
        self._a, self._b, self._c = a, b, c  # keeps the memory alive that the addresses name
        self._scratch = scratch
        entries = _entries.get(a.dtype.name)
        self._entry = entries.gemm if entries is not None else None
        if self._entry is None:
            return
        (ta, lda), (tb, ldb) = _leading(a), _leading(b)
        tc, ldc = _leading(c)
        assert tc == _PLAIN, "C's rows must be contiguous"
        (m, k), n = a.shape, b.shape[1]
        first, second, target = (array.ctypes.data for array in (a, b, c))
        every = (_ROW_MAJOR, ta, tb, m, n, k, 0.0, first, lda, second, ldb, 0.0, target, ldc)
        # C numbers are made here once: it saves a third of a call.
        made = tuple(kind(value) for kind, value in zip(self._entry.argtypes, every, strict=True))
        self._arguments, self._tail = made[:_ALPHA], (made[_ALPHA + 1 : _BETA], made[_BETA + 1 :])

    def __call__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        """Do it. beta 0 overwrites C, whatever it held."""
        if self._entry is not None:
            operands, target = self._tail
            self._entry(*self._arguments, alpha, *operands, beta, *target)
            return
        self._without(alpha, beta)

    def _without(self, alpha: float, beta: float) -> None:
        c = self._c
        if beta == 0.0:
            np.matmul(self._a, self._b, out=c)
            if alpha != 1.0:
                np.multiply(c, c.dtype.type(alpha), out=c)
            return
        part = np.matmul(self._a, self._b, out=self._scratch)
        if alpha != 1.0:
            np.multiply(part, c.dtype.type(alpha), out=part)
        if beta != 1.0:
            np.multiply(c, c.dtype.type(beta), out=c)
        np.add(c, part, out=c)


class Products:
    """A·B, to be accumulated into one of several arrays that stay in place: `into` makes each `Product` once."""

    __slots__ = ("_a", "_b", "_made", "_scratch")

    def __init__(self, a: Array, b: Array, scratch: Array | None = None) -> None:
        self._a, self._b, self._scratch = a, b, scratch
        self._made: dict[int, Product] = {}

    def into(self, c: Array) -> Product:
        """The product into this array."""
        product = self._made.get(id(c))  # the product keeps the array, so that its id stays its own
        if product is None:
            product = self._made[id(c)] = Product(self._a, self._b, c, self._scratch)
        return product


def _leading(matrix: Array) -> tuple[int, int]:
    """Whether the matrix is a transposed one, and its leading dimension in elements."""
    rows, columns = matrix.shape
    down, along = (stride // matrix.itemsize for stride in matrix.strides)
    if along == 1 or columns == 1:
        return _PLAIN, max(down, columns, 1) if rows > 1 else max(columns, 1)
    assert down == 1 or rows == 1, "neither rows nor columns are contiguous"
    return _TRANSPOSED, max(along, rows, 1)
