"""How ggml's block quantizers look for scales, in numpy: the readable oracle of the compiled kernels.

Every array is float32 and every operation rounds to it, in ggml's order: sums run over the last axis from its
first element on. So the results are those of ggml's C code built without contraction, bit for bit.

Axes: ``b`` blocks, ``n`` weights of a block. Source: llama.cpp's ggml-quants.c.
"""

import numpy as np

Floats = np.ndarray
Ints = np.ndarray

F = np.float32
ALL_ZERO = F(1e-15)  # below this a block counts as zero


def nearest(values: Floats) -> Ints:
    """To the nearest integer, ties to even; beyond 2^22, Inf and NaN: what the bits of the sum are (ggml's
    ``nearest_int``)."""
    bits = (values + F(12582912)).view(np.int32)
    return (bits & 0x7FFFFF) - 0x400000


def total(values: Floats) -> Floats:
    """Sum over the last axis, one after the other, from 0."""
    return np.cumsum(values, -1, dtype=F)[..., -1] + F(0)


def extreme(x: Floats) -> tuple[Floats, Floats]:
    """(b,), (b,): of each block the number of the largest magnitude (the first of equals, NaN left out), and
    that magnitude."""
    magnitudes = np.where(np.isnan(x), F(0), np.abs(x))
    value = first_of_equals(x, magnitudes.argmax(-1))
    size = magnitudes.max(-1)
    return np.where(size == 0, F(0), value), size


def affine(
    x: Floats, w: Floats, largest: int, first: float, step: float, steps: int, absolute: bool = False
) -> tuple[Floats, Floats, Ints]:
    """Scale (b,), minimum (b,) at most 0, codes (b, n) in 0..largest, for x (b, n) ~ scale * codes + minimum.

    Minimises the sum of w * error^2 (``absolute``: w * abs(error)). Each step makes codes by a trial scale,
    fits scale and minimum to them by least squares, and keeps what is better; the minimum that was found last
    is where the next step starts. Source: make_qkx2_quants, make_qkx3_quants.
    """

    def error(scale: Floats, minimum: Floats, codes: Ints) -> Floats:
        off = scale[:, None] * codes.astype(F) + minimum[:, None] - x
        return total(w * (np.abs(off) if absolute else off * off))

    sum_w = np.cumsum(w, -1, dtype=F)[:, -1]
    sum_x = np.cumsum(w * x, -1, dtype=F)[:, -1]
    low, high = first_of_equals(x, np.argmin(x, -1)), x.max(-1)
    minimum = np.where(low > 0, F(0), low)
    flat = high == minimum
    inverse = F(largest) / (high - minimum)
    scale = F(1) / inverse
    codes = np.clip(nearest(inverse[:, None] * (x - minimum[:, None])), 0, largest)
    best = error(scale, minimum, codes)
    start = minimum
    for index in range(steps + 1):
        inverse = (F(first) + F(step) * F(index) + F(largest)) / (high - minimum)
        trial = np.clip(nearest(inverse[:, None] * (x - minimum[:, None])), 0, largest)
        code = trial.astype(F)
        sum_l, sum_l2, sum_xl = total(w * code), total(w * code * code), total(w * code * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
        low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        fitted = np.where(low > 0, sum_xl / sum_l2, fitted)
        low = np.where(low > 0, F(0), low)
        wrong = error(fitted, low, trial)
        better = (determinant > 0) & (wrong < best)
        best, scale, minimum = (
            np.where(better, new, old) for new, old in ((wrong, best), (fitted, scale), (low, minimum))
        )
        codes = np.where(better[:, None], trial, codes)
    codes[flat] = 0
    return np.where(flat, F(0), scale), np.where(flat, start, minimum), codes


def first_of_equals(x: Floats, places: np.ndarray) -> Floats:
    return np.take_along_axis(x, places[:, None], -1)[:, 0]


def signed(x: Floats, w: Floats, largest: int) -> tuple[Floats, Ints]:
    """Scale (b,) and codes (b, n) in -largest..largest-1, stored with ``largest`` added, for x ~ scale *
    codes.

    Maximises sum(w x codes)^2 / sum(w codes^2), which makes the weighted error of the least-squares scale the
    smallest, over 19 trial scales. A block of zeros has stored codes of 0. Source: make_qx_quants with
    rmse_type 1.
    """
    most, size = extreme(x)
    wx = w * x
    scale = best = np.zeros_like(most)
    codes = np.zeros(x.shape, np.int32)
    for index in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(F(largest) + F(0.1) * F(index)) / most
        trial = np.clip(nearest(inverse[:, None] * x), -largest, largest - 1)
        code = trial.astype(F)
        sum_xl, sum_l2 = total(wx * code), total(w * code * code)
        if index == 0:
            better = np.ones(len(x), bool)
            fitted = np.where(sum_l2 == 0, F(0), sum_xl / sum_l2)
        else:
            better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
            fitted = sum_xl / sum_l2
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * sum_xl, best)
        codes = np.where(better[:, None], trial, codes)
    empty = size < ALL_ZERO
    return np.where(empty, F(0), scale), np.where(empty[:, None], 0, codes + largest)


def climbing(x: Floats, largest: int) -> tuple[Floats, Ints]:
    """As ``signed`` with weights x^2, but from the codes of the plain scale on: up to five rounds change one
    code at a time where that is better. Source: make_q3_quants."""
    most, size = extreme(x)
    w = x * x
    codes = np.clip(nearest(-F(largest) / most[:, None] * x), -largest, largest - 1).astype(F)
    sum_xl, sum_l2 = total(w * x * codes), total(w * codes * codes)
    for _ in range(5):
        for i in range(x.shape[1]):
            here, weight, old = x[:, i], w[:, i], codes[:, i].copy()
            xl, l2 = sum_xl - weight * here * old, sum_l2 - weight * old * old
            new = np.clip(nearest(here * l2 / xl), -largest, largest - 1).astype(F)
            change = (xl > 0) & (new != old)
            xl, l2 = xl + weight * here * new, l2 + weight * new * new
            change &= (l2 > 0) & (xl * xl * sum_l2 > sum_xl * sum_xl * l2)
            codes[:, i] = np.where(change, new, old)
            sum_xl, sum_l2 = np.where(change, xl, sum_xl), np.where(change, l2, sum_l2)
    empty = size < ALL_ZERO
    scale = np.where(empty | ~(sum_l2 > 0), F(0), sum_xl / sum_l2)
    return scale, np.where(empty[:, None], 0, codes.astype(np.int32) + largest)


def positive(x: Floats, w: Floats, largest: int) -> tuple[Floats, Ints]:
    """Scale (b,) and codes (b, n) in 0..largest for x ~ scale * codes, x of at least 0: nine trial scales by
    weighted error, then rounds as in ``climbing``. Codes are bytes, and wrap as bytes do. Source:
    make_qp_quants."""
    top: Floats = np.zeros(len(x), F)
    for i in range(x.shape[1]):
        top = np.where(top > x[:, i], top, x[:, i])
    inverse = best_inverse = F(largest) / top
    off = x - (F(1) / inverse)[:, None] * (nearest(inverse[:, None] * x) & 255).astype(F)
    best = total(w * off * off)
    for index in (*range(-4, 0), *range(1, 5)):
        inverse = (F(0.1) * F(index) + F(largest)) / top
        trial = np.minimum(nearest(inverse[:, None] * x), largest)
        off = x - (F(1) / inverse)[:, None] * trial.astype(F)
        wrong = total(w * off * off)
        better = wrong < best
        best, best_inverse = np.where(better, wrong, best), np.where(better, inverse, best_inverse)
    codes = np.minimum(nearest(best_inverse[:, None] * x), largest)
    floats = codes.astype(F)
    sum_xl, sum_l2 = total(w * x * floats), total(w * floats * floats)
    codes &= 255
    for _ in range(5):
        for i in range(x.shape[1]):
            here, weight, old = x[:, i], w[:, i], codes[:, i].astype(F)
            xl, l2 = sum_xl - weight * here * old, sum_l2 - weight * old * old
            code = np.minimum(nearest(here * l2 / xl), largest)
            new = code.astype(F)
            change = (xl > 0) & (l2 > 0) & (code != codes[:, i])
            xl, l2 = xl + weight * here * new, l2 + weight * new * new
            change &= xl * xl * sum_l2 > sum_xl * sum_xl * l2
            codes[:, i] = np.where(change, code & 255, codes[:, i])
            sum_xl, sum_l2 = np.where(change, xl, sum_xl), np.where(change, l2, sum_l2)
    empty = top < ALL_ZERO
    codes[empty] = 0
    return np.where(empty | ~(sum_l2 > 0), F(0), sum_xl / sum_l2), codes
