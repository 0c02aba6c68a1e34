"""The compiled rounding of whole rows (``quantwright_rounded``), where it was built: a weight's bits as its
file holds them become those that compressed-tensors stores, in one pass over a row that a core's cache
holds."""

import ctypes
from dataclasses import dataclass

import numpy as np

from quantize.kernels import native
from quantize.kernels.grid import search_arguments
from quantize.numerics.grids import LARGEST_SCALE, Grid
from quantize.numerics.rtn import tried
from quantize.numerics.sketch import PROJECTIONS, factors

#: OF_FLOAT32 and so on of quantwright.h, by safetensors' names, and what numpy holds each in
TYPES = {"F32": (0, np.float32), "BF16": (1, np.uint16), "F16": (2, np.uint16)}
WORK_LANES = 16  # of quantwright.h


class _Rounding(ctypes.Structure):
    """Rounding of quantwright.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("scale_type", ctypes.c_int), ("bits", ctypes.c_int), ("flip", ctypes.c_int),
        ("columns", ctypes.c_int64), ("size", ctypes.c_int64), ("limit", ctypes.c_float),
        ("search", ctypes.c_void_p), ("factors", ctypes.c_void_p),
    )  # fmt: skip


@dataclass(frozen=True)
class RoundedRows:
    """``codes`` uint8 (r, i), or (r, i / 2) of 4 bits, the first of two in the lower bits; ``scales`` (r, g),
    raw bits of the type that was asked for; ``zeros`` float32 (r, g), of integers; ``took`` and ``made``
    float64 (r, 2): ``quantize.numerics.sketch`` of the weights and of what the codes mean. ``fits``: False
    where a weight is not finite or too large for any scale; all else is unfinished then."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    took: np.ndarray
    made: np.ndarray
    fits: bool


class RowRounder:
    """Of matrices of ``columns`` inputs stored as ``dtype``: E4M3, one scale for each row (``grid`` None), or
    integers of 4 or 8 bits with ``grid``'s scales of least squared error; scales are stored as
    ``scale_type``. Names are safetensors'. ``flip``: put over each byte of codes by exclusive or.

    Bytes are those of ``small_floats.to_e4m3`` and, with the compiled search, of ``rtn.round_to_nearest``
    (both of ``quantize.numerics``). Safe in several threads.
    """

    def __init__(
        self,
        library: native.Library,
        dtype: str,
        columns: int,
        scale_type: str,
        grid: Grid | None = None,
        flip: int = 0,
    ):
        self._library, self._columns, self._grid = library, columns, grid
        self._bits = grid.bits if grid else 8
        size = grid.columns(columns) if grid else columns
        self._groups, self._scales = columns // size, TYPES[scale_type][1]
        self._given = TYPES[dtype][1]
        self._padded = -(-columns // WORK_LANES) * WORK_LANES
        self._by = np.zeros((PROJECTIONS, self._padded))
        self._by[:, :columns] = factors(columns).T
        self._search = search_arguments(grid, tried(grid)) if grid else None
        self._limit = LARGEST_SCALE * grid.top / 2 if grid else float(np.finfo(np.float32).max)
        self._asked = _Rounding(
            TYPES[dtype][0], TYPES[scale_type][0], grid.bits if grid else 0, flip, columns, size, self._limit,
            ctypes.addressof(self._search) if self._search else None, self._by.ctypes.data,
        )  # fmt: skip

    def __call__(self, raw: np.ndarray) -> RoundedRows:
        """``raw`` (r, columns), as ``quantize.dtypes.NUMPY`` holds it."""
        held = np.ascontiguousarray(raw)
        rows, columns = held.shape
        assert columns == self._columns
        assert held.dtype.itemsize == np.dtype(self._given).itemsize
        codes = np.empty((rows, columns * self._bits // 8), np.uint8)
        scales = np.empty((rows, self._groups), self._scales)
        zeros = np.empty((rows, self._groups) if self._grid else (0, 0), np.float32)
        took, made = np.empty((rows, PROJECTIONS)), np.empty((rows, PROJECTIONS))
        work = np.empty((2, self._padded), np.float32)
        largest = self._library.functions.quantwright_rounded(
            self._library.which, ctypes.addressof(self._asked), held.ctypes.data, rows, codes.ctypes.data,
            scales.ctypes.data, zeros.ctypes.data, took.ctypes.data, made.ctypes.data, work.ctypes.data,
        )  # fmt: skip
        return RoundedRows(codes, scales, zeros, took, made, bool(largest <= self._limit))
