"""Weights in four bits with a power of two for each 32 of them (OCP MX), as gpt-oss is published."""

import numpy as np

from quantize.numerics.fp8 import e8m0_values

#: what the lower three bits of a code mean (E2M1); the fourth is the sign
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = 32
#: a scale that makes its block no numbers
NAN = 0xFF


def dequantize_mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 (..., G * 32) of uint8 ``codes`` (..., G, 16), two a byte, the lower bits first, and uint8
    ``scales`` (..., G), exponents with bias 127 (0xFF is NaN).

    Exact: a product of two significant bits and a power of two. Source: OCP Microscaling Formats (MX)
    specification 1.0, section 5.3; transformers' ``convert_moe_packed_tensors``. Errors: ValueError where the
    shapes do not fit.
    """
    if codes.shape != (*scales.shape, BLOCK // 2):
        expected = [*scales.shape, BLOCK // 2]
        raise ValueError(f"codes of shape {list(codes.shape)}, expected {expected}")
    table = np.array([*VALUES, *(-value for value in VALUES)], np.float32)
    values = np.empty((*codes.shape[:-1], BLOCK), np.float32)
    values[..., 0::2], values[..., 1::2] = table[codes & 15], table[codes >> 4]
    values *= e8m0_values(scales)[..., None]
    return values.reshape(*codes.shape[:-2], -1)


def ggml_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 (..., G * 17), ggml's blocks of the same values: the scale, then 16 bytes whose lower four bits
    are the first half of the codes and whose upper ones the second, of uint8 ``codes`` (..., G, 16), two
    neighbours a byte, the lower bits first, and ``scales`` (..., G). Only bits move.

    Source: ``block_mxfp4`` in ggml-common.h; the codes index the same values there, doubled, with half the
    scale.
    """
    single = np.empty((*codes.shape[:-1], BLOCK), np.uint8)
    single[..., 0::2], single[..., 1::2] = codes & 15, codes >> 4
    blocks = np.empty((*scales.shape, 1 + BLOCK // 2), np.uint8)
    blocks[..., 0] = scales
    blocks[..., 1:] = single[..., : BLOCK // 2] | single[..., BLOCK // 2 :] << 4
    return blocks.reshape(*scales.shape[:-1], -1)
