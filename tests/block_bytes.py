"""Blocks of rows by llama.cpp and by the readable oracle."""

import ctypes

import numpy as np
from gguf import GGML_QUANT_SIZES

from quantize.kernels.block_types import Type
from quantize.kernels.llamacpp import ggml_library
from quantize.kernels.native import Native
from quantize.numerics import kquants, small_blocks

KINDS = sorted(Native.kinds)

#: where a block has its scales in half precision, by bytes from its start
SCALES = {
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,),
    Type.Q4_1: (0, 2), Type.Q5_1: (0, 2),
}  # fmt: skip


def oracle_blocks(kind: Type, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """(b, bytes of a block) uint8."""
    with np.errstate(all="ignore"):
        if "_K" not in kind.name:
            made = getattr(small_blocks, kind.name.lower())(rows, importance)
        else:
            spread = None
            if importance is not None:
                spread = np.broadcast_to(importance, rows.shape).reshape(-1, 256)
            made = getattr(kquants, kind.name.lower())(rows.reshape(-1, 256), spread)
    return made


def llamacpp_blocks(kind: Type, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """(b, bytes of a block) uint8, of refused rows too."""
    weights, size = GGML_QUANT_SIZES[kind]
    out = np.empty((rows.size // weights, size), np.uint8)
    given = importance.ctypes.data_as(ctypes.c_void_p) if importance is not None else None
    ggml_library().ggml_quantize_chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, given)
    return out


def holds(kind: Type, blocks: np.ndarray) -> np.ndarray:
    """(b,) bool: the scales of a block are finite."""
    scales = [np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) for at in SCALES.get(kind, (0,))]
    return np.isfinite(np.concatenate(scales, 1)).all(1)
