"""ggml's K-quants in numpy, a function a type: the readable oracle of the compiled kernels, which are equal
to it byte for byte.

A super-block of 256 weights is cut into sub-blocks of 16 or 32. Each gets a scale (and a minimum), which goes
through a few bits under a scale of the super-block in half precision; then the codes are made again from what
a reader will see. Where the scale that a reader sees is 0, the codes of the search stay.

Arguments: x (s, 256) float32, super-blocks; importance (s, 256) float32 or None. Results: (s, bytes) uint8.
Axes: ``s`` super-blocks, ``j`` sub-blocks of one, ``n`` weights of a sub-block.
Source: quantize_row_q*_K_ref and quantize_row_q*_K_impl of llama.cpp's ggml-quants.c.
"""

import numpy as np

from quantize.numerics.scale_search import (
    ALL_ZERO,
    F,
    Floats,
    Ints,
    affine,
    climbing,
    extreme,
    nearest,
    positive,
    signed,
    total,
)

Bytes = np.ndarray


def _half(values: Floats) -> tuple[Bytes, Floats]:
    """(s, 2) bytes in half precision, and what a reader makes of them."""
    half = values.astype(np.float16)
    return half.view(np.uint8).reshape(-1, 2), half.astype(F)


def _weighed(x: Floats, importance: Floats, share: float) -> Floats:
    """Importance times sqrt(spread of the super-block + x^2)."""
    spread = F(share) * total(x * x) / F(256)
    return importance * np.sqrt(spread[:, None] + x * x)


def _divided(numerator: float, values: Floats) -> Floats:
    """0 where ``values`` are not above 0."""
    return np.where(values > 0, F(numerator) / values, F(0))


def _requantized(x: Floats, d: Floats, m: Floats, low: int, high: int, found: Ints) -> Ints:
    """Codes (s, j, n) by what a reader sees, d and m (s, j); ``found`` where d is 0."""
    codes = np.clip(nearest((x + m[..., None]) / d[..., None]), low, high) - low
    return np.where(d[..., None] == 0, found, codes)


def _affine_32(x: Floats, importance: Floats | None, bits: int) -> tuple[Bytes, Ints]:
    """Q4_K and Q5_K: the 16 bytes of scales, and codes (s, 256)."""
    largest, blocks = 2**bits - 1, x.reshape(-1, 32)
    if importance is not None:
        w = _weighed(x, importance, 2).reshape(-1, 32)
        scale, minimum, found = affine(blocks, w, largest, -0.9, 0.05, 36)
        weights = total(w).reshape(-1, 8)
        d, scales = positive(scale.reshape(-1, 8), weights, 63)
        dmin, minima = positive(-minimum.reshape(-1, 8), weights, 63)
    else:
        w = np.sqrt(total(blocks * blocks) / F(32))[:, None] + np.abs(blocks)
        first, steps = (-1.0, 20) if bits == 4 else (-0.5, 15)
        scale, minimum, found = affine(blocks, w, largest, first, 0.1, steps)
        scale, depth = scale.reshape(-1, 8), -minimum.reshape(-1, 8)
        most, deepest = np.maximum(scale.max(1), F(0)), np.maximum(depth.max(1), F(0))
        scales = nearest(_divided(63, most)[:, None] * scale) & 255
        minima = nearest(_divided(63, deepest)[:, None] * depth) & 255
        d, dmin = most / F(63), deepest / F(63)
    if importance is None or bits == 5:
        scales, minima = np.minimum(scales, 63), np.minimum(minima, 63)
    # Four scales and minima in six bits of a byte; of the other four, four bits lie in a byte of their own,
    # two above the first ones.
    s, m = scales, minima
    packed = np.concatenate(
        [
            s[:, :4] | s[:, 4:] >> 4 << 6,
            m[:, :4] | m[:, 4:] >> 4 << 6,
            s[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
        ],
        1,
    ).astype(np.uint8)
    top, deep, rest = (packed[:, 4 * k : 4 * k + 4].astype(np.int32) for k in range(3))
    scales = np.concatenate([top & 63, rest & 15 | top >> 6 << 4], 1)
    minima = np.concatenate([deep & 63, rest >> 4 | deep >> 6 << 4], 1)
    (d_bytes, d), (dmin_bytes, dmin) = _half(d), _half(dmin)
    codes = _requantized(
        x.reshape(-1, 8, 32),
        d[:, None] * scales.astype(F),
        dmin[:, None] * minima.astype(F),
        0,
        largest,
        found.reshape(-1, 8, 32),
    )
    return np.concatenate([d_bytes, dmin_bytes, packed], 1), codes.reshape(-1, 256)


def _nibbles(codes: Ints) -> Bytes:
    """Low four bits of codes, 32 bytes for each 64: the second half in the upper bits."""
    c = codes.reshape(-1, 4, 2, 32) & 15
    return (c[:, :, 0] | c[:, :, 1] << 4).reshape(-1, 128).astype(np.uint8)


def _bits(codes: Ints, bit: int) -> Bytes:
    """One bit of each code, (s, 32): byte i holds codes i, i + 32, i + 64, ..."""
    c = (codes >> bit & 1).reshape(-1, 8, 32)
    return (c << np.arange(8)[:, None]).sum(1).astype(np.uint8)


def _pairs(codes: Ints) -> Bytes:
    """Two bits of each code, (s, 64): a byte holds four that lie 32 apart."""
    c = codes.reshape(-1, 2, 4, 32) & 3
    return (c << 2 * np.arange(4)[:, None]).sum(2).reshape(-1, 64).astype(np.uint8)


def q4_k(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * scale * code - dmin * minimum, sub-blocks of 32, codes 0..15."""
    scales, codes = _affine_32(x, importance, 4)
    return np.concatenate([scales, _nibbles(codes)], 1)


def q5_k(x: Floats, importance: Floats | None = None) -> Bytes:
    """As Q4_K with codes 0..31, the fifth bits apart."""
    scales, codes = _affine_32(x, importance, 5)
    return np.concatenate([scales, _bits(codes, 4), _nibbles(codes)], 1)


def q2_k(x: Floats, importance: Floats | None = None) -> Bytes:
    """As Q4_K with sub-blocks of 16, codes 0..3, scales and minima of four bits."""
    blocks = x.reshape(-1, 16)
    if importance is not None:
        w = _weighed(x, importance, 1).reshape(-1, 16)
        scale, minimum, found = affine(blocks, w, 3, -0.9, 0.05, 36)
        weights = total(w).reshape(-1, 16)
        d, scales = positive(scale.reshape(-1, 16), weights, 15)
        dmin, minima = positive(-minimum.reshape(-1, 16), weights, 15)
    else:
        scale, minimum, found = affine(blocks, np.abs(blocks), 3, -0.5, 0.1, 15, absolute=True)
        scale, depth = scale.reshape(-1, 16), -minimum.reshape(-1, 16)
        most, deepest = np.maximum(scale.max(1), F(0)), np.maximum(depth.max(1), F(0))
        scales = nearest(_divided(15, most)[:, None] * scale)
        minima = nearest(_divided(15, deepest)[:, None] * depth)
        d, dmin = most / F(15), deepest / F(15)
    packed = ((scales | minima << 4) & 255).astype(np.uint8)
    (d_bytes, d), (dmin_bytes, dmin) = _half(d), _half(dmin)
    codes = _requantized(
        x.reshape(-1, 16, 16),
        d[:, None] * (packed & 15).astype(F),
        dmin[:, None] * (packed >> 4).astype(F),
        0,
        3,
        found.reshape(-1, 16, 16),
    )
    return np.concatenate([packed, _pairs(codes.reshape(-1, 256)), d_bytes, dmin_bytes], 1)


def q3_k(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * scale * code, sub-blocks of 16, codes -4..3, scales -32..31."""
    blocks = x.reshape(-1, 16)
    if importance is not None:
        w = _weighed(x, importance, 2).reshape(-1, 16)
        scale, found = signed(blocks, w, 4)
        d, scales = signed(scale.reshape(-1, 16), total(w).reshape(-1, 16), 32)
    else:
        scale, found = climbing(blocks, 4)
        scale = scale.reshape(-1, 16)
        most, _ = extreme(scale)
        inverse = F(-32) / most
        scales = np.where(
            most[:, None] == 0, 0, np.clip(nearest(inverse[:, None] * scale), -32, 31) + 32
        ).astype(np.int32)
        d = np.where(most == 0, F(0), F(1) / inverse)
    d_bytes, d = _half(d)
    low = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    high = (scales.reshape(-1, 4, 4) >> 4 << 2 * np.arange(4)[:, None]).sum(1)
    here = d[:, None] * (scales - 32).astype(F)
    codes = _requantized(
        x.reshape(-1, 16, 16), here, np.zeros_like(here), -4, 3, found.reshape(-1, 16, 16)
    ).reshape(-1, 256)
    packed = np.concatenate([low, high], 1).astype(np.uint8)
    return np.concatenate([_bits(codes, 2), _pairs(codes), packed, d_bytes], 1)


def q6_k(x: Floats, importance: Floats | None = None) -> Bytes:
    """x ~ d * scale * code, sub-blocks of 16, codes -32..31, scales -128..127."""
    w = x * x if importance is None else importance
    scale, found = signed(x.reshape(-1, 16), w.reshape(-1, 16), 32)
    scale = scale.reshape(-1, 16)
    most, size = extreme(scale)
    inverse = F(-128) / most
    scales = np.minimum(nearest(inverse[:, None] * scale), 127).astype(np.int8)
    d_bytes, d = _half(F(1) / inverse)
    here = d[:, None] * scales.astype(F)
    codes = _requantized(
        x.reshape(-1, 16, 16), here, np.zeros_like(here), -32, 31, found.reshape(-1, 16, 16)
    ).reshape(-1, 256)
    c = codes.reshape(-1, 2, 2, 64) & 15
    low = (c[:, :, 0] | c[:, :, 1] << 4).reshape(-1, 128).astype(np.uint8)
    out = np.concatenate([low, _pairs(codes >> 4), scales.view(np.uint8), d_bytes], 1)
    out[size < ALL_ZERO] = 0
    return out
