"""ggml's types of blocks of 32 weights, and IQ4_XS, in numpy, a function a type: the readable oracle of the
compiled kernels, which are equal to it byte for byte.

Arguments: x (r, c) float32, rows of whole blocks; importance (c,) float32 or None. Results: (b, bytes) uint8,
blocks of all rows in order. Source: quantize_row_q*_ref, quantize_row_q*_impl and quantize_row_iq4_nl_impl of
llama.cpp's ggml-quants.c.
"""

import numpy as np

from quantize.numerics.scale_search import ALL_ZERO, F, Floats, Ints, affine, extreme, nearest, signed, total

Bytes = np.ndarray

#: what the sixteen codes of IQ4_NL and IQ4_XS stand for
CODEBOOK = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], F)
HALFWAY = (CODEBOOK[1:] + CODEBOOK[:-1]) / F(2)


def _half(values: Floats) -> Bytes:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _codes(codes: Ints, bits: int = 4) -> Bytes:
    """(b, 32) -> 16 bytes, the second half of the block in the upper four bits; fifth bits come before."""
    low = (codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4).astype(np.uint8)
    if bits == 4:
        return low
    return np.concatenate([np.packbits((codes >> 4 & 1).astype(bool), 1, bitorder="little"), low], 1)


def _inverse(d: Floats) -> Floats:
    """1 / d as a column, 0 where d is 0."""
    return np.where(d == 0, F(0), F(1) / d)[:, None]


def _whole(values: Floats) -> Ints:
    """Towards zero; 0 for Inf and NaN, whose conversion on x86 ends in a low byte of 0."""
    return np.where(np.isfinite(values), values, F(0)).astype(np.int32)


def _weighed(x: Floats, importance: Floats) -> Floats:
    """Importance times sqrt(mean square of the row + x^2), (b, 32)."""
    spread = total(x * x) / F(x.shape[1])
    return (importance * np.sqrt(spread[:, None] + x * x)).reshape(-1, 32)


def _around_zero(x: Floats, importance: Floats | None, bits: int) -> Bytes:
    blocks, half = x.reshape(-1, 32), 2 ** (bits - 1)
    if importance is not None:
        d, codes = signed(blocks, _weighed(x, importance), half)
    else:
        d = extreme(blocks)[0] / F(-half)
        codes = np.minimum(_whole(blocks * _inverse(d) + F(half + 0.5)), 2 * half - 1)
    return np.concatenate([_half(d), _codes(codes, bits)], 1)


def _with_minimum(x: Floats, importance: Floats | None, bits: int) -> Bytes:
    blocks, largest = x.reshape(-1, 32), 2**bits - 1
    if importance is not None:
        d, low, codes = affine(blocks, _weighed(x, importance), largest, -0.9, 0.05, 36)
    else:
        first = np.take_along_axis(blocks, blocks.argmin(1)[:, None], 1)[:, 0]
        low, d = first, (blocks.max(1) - first + F(0)) / F(largest)  # + 0: the difference of zeros is not -0
        codes = np.minimum(_whole((blocks - low[:, None]) * _inverse(d) + F(0.5)), largest)
    return np.concatenate([_half(d), _half(low), _codes(codes, bits)], 1)


def q4_0(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * (code - 8), codes 0..15: the number of the largest magnitude gets code 0."""
    return _around_zero(x, importance, 4)


def q5_0(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * (code - 16), codes 0..31."""
    return _around_zero(x, importance, 5)


def q4_1(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * code + m, codes 0..15, m the least number."""
    return _with_minimum(x, importance, 4)


def q5_1(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * code + m, codes 0..31."""
    return _with_minimum(x, importance, 5)


def q8_0(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * code, codes -127..127, halves rounded away from zero. Importance changes nothing."""
    blocks = x.reshape(-1, 32)
    d = np.abs(blocks).max(1) / F(127)
    scaled = blocks * _inverse(d)
    whole = np.trunc(scaled)
    rounded = whole + np.copysign(F(1), scaled) * (np.abs(scaled - whole) >= F(0.5))
    return np.concatenate([_half(d), _whole(rounded).astype(np.int8).view(np.uint8)], 1)


def _closest(values: Floats) -> Ints:
    """Code of the closest number of the codebook; halfway points and NaN go up."""
    return (~(values[..., None] < HALFWAY)).sum(-1).astype(np.int32)


def _codebook_scale(blocks: Floats, w: Floats) -> Floats:
    """(b,): the best by least squares of 16 trial scales that put -127, or a number near, at the extreme."""
    most, size = extreme(blocks)
    scale = best = np.zeros_like(most)
    for index in (None, *range(-7, 8)):
        inverse = F(1) / (-most / CODEBOOK[0]) if index is None else (F(index) + CODEBOOK[0]) / most
        numbers = CODEBOOK[_closest(inverse[:, None] * blocks)]
        sum_xq, sum_q2 = total(w * numbers * blocks), total(w * numbers * numbers)
        fitted = sum_xq / sum_q2
        better = sum_q2 > 0
        if index is not None:
            better &= sum_xq * sum_xq > best * sum_q2
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * sum_xq, best)
    return np.where(size < ALL_ZERO, F(0), scale)


def _codebook_weights(x: Floats, importance: Floats | None, columns: int) -> Floats:
    """(b, 32), by the spread of ``columns`` weights."""
    blocks = x.reshape(-1, columns)
    if importance is None:
        return (blocks * blocks).reshape(-1, 32)
    spread = total(blocks * blocks) * F(2 / columns)
    given = np.broadcast_to(importance, x.shape).reshape(-1, columns)
    return (given * np.sqrt(spread[:, None] + blocks * blocks)).reshape(-1, 32)


def iq4_nl(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * CODEBOOK[code]."""
    blocks = x.reshape(-1, 32)
    scale = _codebook_scale(blocks, _codebook_weights(x, importance, 32))
    return np.concatenate([_half(scale), _codes(_closest(_inverse(scale) * blocks))], 1)


def iq4_xs(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * scale * CODEBOOK[code], eight blocks of 32 with scales -32..31 in a super-block. Codes are made
    by the d that has not gone through half precision."""
    blocks = x.reshape(-1, 32)
    scale = _codebook_scale(blocks, _codebook_weights(x, importance, 256)).reshape(-1, 8)
    d = -extreme(scale)[0] / F(32)
    scales = np.clip(nearest(_inverse(d) * scale), -32, 31)
    codes = _closest(_inverse((d[:, None] * scales.astype(F)).reshape(-1)) * blocks)
    s = scales + 32
    high = (s >> 4 << 2 * np.arange(8)).sum(1).astype("<u2").view(np.uint8).reshape(-1, 2)
    low = (s[:, ::2] & 15 | (s[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate([_half(d), high, low, _codes(codes).reshape(-1, 128)], 1)
