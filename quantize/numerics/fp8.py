"""Weights in float8 (E4M3) with a scale for each block of them, as DeepSeek and Qwen publish them."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1)
def e4m3_values() -> np.ndarray:
    """(256,) float32: what each code of E4M3 means (sign, four bits of exponent with bias 7, three of
    mantissa; 0x7F and 0xFF are NaN, there is no infinity).

    Source: the OCP 8-bit floating point specification, revision 1.0, section 5.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(
        exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.float64) - 7)
    )
    values[codes & 0x7F == 0x7F] = np.nan
    return np.asarray(np.where(codes & 0x80, -values, values), np.float32)


def e8m0_values(codes: np.ndarray) -> np.ndarray:
    """uint8 exponents as the float32 powers of two that they are; 0xFF is NaN."""
    values = np.ldexp(1.0, codes.astype(np.int32) - 127)
    values[codes == 0xFF] = np.nan  # and 2**128 is no float32
    return values.astype(np.float32)


def dequantize_e4m3(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """float32 (..., N, K) of uint8 ``codes`` (..., N, K) and float32 ``scales``
    (..., ceil(N / block[0]), ceil(K / block[1])), or one for all: each value times the scale of its block,
    rounded once, to float32.

    Source: DeepSeek-V3's ``weight_dequant_kernel`` (inference/kernel.py). Errors: ValueError where the shapes
    do not fit.
    """
    values = e4m3_values()[codes]
    if scales.size == 1:
        return np.asarray(values * scales.reshape(()), np.float32)
    rows, columns = codes.shape[-2:]
    expected = (*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    if scales.shape != expected:
        raise ValueError(f"scales of shape {list(scales.shape)}, expected {list(expected)}")
    for index in np.ndindex(scales.shape[:-1]):  # one row of blocks at a time, in place
        at = (*index[:-1], slice(index[-1] * block[0], (index[-1] + 1) * block[0]))
        values[at] *= np.repeat(scales[index], block[1])[:columns]
    return values
