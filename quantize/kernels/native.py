"""The compiled kernels of this project (``quantize/kernels/c``): where they are, and the block quantizers
among them.

They are plain C functions called through ctypes, which releases the GIL: Python's threads share the rows.
What the processor has decides which implementation runs; ``$QUANTWRIGHT_KERNELS`` (``avx512``, ``avx2``,
``portable`` or ``off``) asks for a lesser one. Nothing is compiled here: a package without them works, more
slowly.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

from quantize.errors import BadInput, StepFailed
from quantize.kernels.base import BlockQuantizer, too_large
from quantize.kernels.block_types import Type, row_bytes

ABI = 3  # QUANTWRIGHT_ABI of quantwright.h
IMPLEMENTATIONS = ("portable", "avx2", "avx512")  # by their numbers in quantwright.h
VARIABLE = "QUANTWRIGHT_KERNELS"


@dataclass(frozen=True)
class Library:
    functions: ctypes.CDLL
    which: int  # implementation that runs
    # whether ``quantize.kernels.rounded`` and ``scaled`` have their functions: builds from before have not
    rounds_rows: bool
    scales_columns: bool


@cache
def _load(asked: str | None) -> Library | str:
    """The library, or why there is none."""
    if asked == "off":
        return f"switched off by ${VARIABLE}"
    if asked is not None and asked not in IMPLEMENTATIONS:
        raise BadInput(f"${VARIABLE} is {asked!r}; it must be one of {', '.join(IMPLEMENTATIONS)}, off")
    here = Path(__file__)
    found = [path for s in EXTENSION_SUFFIXES if (path := here.with_name(f"_native{s}")).exists()]
    if not found:
        return "not built: install again where a C compiler is (GCC or Clang)"
    try:
        functions = ctypes.CDLL(str(found[0]))
        abi = functions.quantwright_abi()
    except (OSError, AttributeError) as error:
        return f"{found[0].name} cannot be loaded: {error}"
    if abi != ABI:
        return f"{found[0].name} is of another version of this program: install again"
    best = functions.quantwright_best()
    which = best if asked is None else IMPLEMENTATIONS.index(asked)
    if which > best:
        raise BadInput(f"${VARIABLE} is {asked}; this processor has {IMPLEMENTATIONS[best]} at most")
    return declared(functions, which)


def declared(functions: ctypes.CDLL, which: int) -> Library:
    """Tells ctypes what the functions take."""
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    functions.quantwright_quantize.restype = long
    functions.quantwright_quantize.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, long, long, pointer, pointer,
    ]  # fmt: skip
    functions.quantwright_columns.restype = None
    functions.quantwright_columns.argtypes = [ctypes.c_int, *[long] * 4, *[pointer] * 9]
    functions.quantwright_grid.restype = None
    functions.quantwright_grid.argtypes = [ctypes.c_int, pointer, *[long] * 4, *[pointer] * 4]
    rounds = hasattr(functions, "quantwright_rounded")
    if rounds:
        functions.quantwright_rounded.restype = ctypes.c_float
        functions.quantwright_rounded.argtypes = [ctypes.c_int, *[pointer] * 2, long, *[pointer] * 6]
    scales = hasattr(functions, "quantwright_change")
    if scales:
        functions.quantwright_scaled.restype = None
        functions.quantwright_scaled.argtypes = [ctypes.c_int, pointer, *[long] * 5, *[pointer] * 3]
        functions.quantwright_change.restype = None
        functions.quantwright_change.argtypes = [
            ctypes.c_int, *[long] * 3, ctypes.c_float, *[pointer] * 4,
        ]  # fmt: skip
    return Library(functions, which, rounds, scales)


def load() -> Library | str:
    """The compiled kernels, or in words why there are none. Errors: BadInput for a ``$QUANTWRIGHT_KERNELS``
    that cannot be had."""
    return _load(os.environ.get(VARIABLE) or None)


def describe() -> str:
    """What ``doctor`` says of them."""
    library = load()
    if isinstance(library, str):
        return f"none ({library}); llama.cpp's quantizers are used"
    kinds = ", ".join(kind.name for kind in sorted(Native.kinds))
    return f"{IMPLEMENTATIONS[library.which]}; quantizes {kinds}"


class Native(BlockQuantizer):
    """Searches many blocks side by side, each lane by ggml's own sequence of float operations: the bytes are
    those of ggml's code built for plain x86-64."""

    name = "quantwright"
    kinds = frozenset(
        {
            Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K,
            Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS,
        }
    )  # fmt: skip

    def __init__(self, library: Library):
        self._library = library

    @property
    def version(self) -> str:
        return f"{metadata.version('quantwright')} ({IMPLEMENTATIONS[self._library.which]})"

    def prepare(self, kind: Type) -> None:
        """Nothing to build."""

    def quantize(
        self, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None
    ) -> None:
        count, columns = rows.shape
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert out.flags.c_contiguous
        assert out.nbytes == count * row_bytes(kind, columns)
        weights = None
        if importance is not None:
            assert importance.dtype == np.float32
            assert importance.shape == (columns,)
            assert importance.flags.c_contiguous
            weights = importance.ctypes.data
        infinite = self._library.functions.quantwright_quantize(
            self._library.which, int(kind), rows.ctypes.data, count, columns, weights, out.ctypes.data
        )
        if infinite < 0:
            raise StepFailed(f"the compiled kernels make no {kind.name}")
        if infinite:
            raise too_large(kind, rows)
