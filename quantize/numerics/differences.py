"""How far one reading of a weight is from another: error, cosine, and where they differ most."""

from dataclasses import dataclass

import numpy as np

#: values looked at together, in double precision: some 200 MB of temporaries
STEP = 1 << 22


@dataclass(frozen=True)
class Difference:
    """``error``: Frobenius norm of the difference over that of the reference, infinite where only the
    reference is zero. ``cosine``: of the angle between the two, 1 where both are zero and 0 where one is.
    ``largest``: of the absolute differences, in ``row``; ``row_error``: the error of the worst ``row`` among
    those that are not small. ``not_finite``: values that are NaN or Inf in either, which are left out.
    ``equal``: every value, NaN in the same places included."""

    equal: bool
    error: float
    cosine: float
    largest: float
    largest_row: int
    worst_row: int
    worst_row_error: float
    not_finite: int


def difference(values: np.ndarray, reference: np.ndarray) -> Difference:
    """Both (..., columns) float32 of one shape; a vector is one row. Sums are in float64.

    Errors: ValueError where the shapes differ.
    """
    if values.shape != reference.shape:
        raise ValueError(f"shapes {values.shape} and {reference.shape} differ")
    columns = max(1, values.shape[-1]) if values.ndim else 1
    a, b = values.reshape(-1, columns), reference.reshape(-1, columns)
    rows = len(a)
    squares, differences, largest = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    own = product = 0.0
    equal, odd = True, 0
    step = max(1, STEP // columns)
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        x, y = a[part].astype(np.float64), b[part].astype(np.float64)
        equal = equal and bool(np.array_equal(x, y, equal_nan=True))
        bad = ~(np.isfinite(x) & np.isfinite(y))
        if bad.any():
            odd += int(bad.sum())
            x[bad] = y[bad] = 0.0
        apart = x - y
        squares[part], differences[part] = (y * y).sum(1), (apart * apart).sum(1)
        largest[part] = np.abs(apart).max(1, initial=0.0)
        own, product = own + float((x * x).sum()), product + float((x * y).sum())
    norm, apart_norm = float(squares.sum()), float(differences.sum())
    error = (apart_norm / norm) ** 0.5 if norm else (float("inf") if apart_norm else 0.0)
    both = (own * norm) ** 0.5
    cosine = product / both if both else float(own == norm)
    worst, worst_error = _worst_row(squares, differences, norm)
    return Difference(
        equal, error, min(1.0, max(-1.0, cosine)), float(largest.max(initial=0.0)),
        int(largest.argmax()) if rows else -1, worst, worst_error, odd,
    )  # fmt: skip


def _worst_row(squares: np.ndarray, differences: np.ndarray, norm: float) -> tuple[int, float]:
    """Of the rows whose norm is at least a tenth of the root mean square: a small row that shares a scale
    with a large one is rounded to nothing, rightly."""
    if not norm:
        return -1, 0.0
    counted = squares >= 0.01 * norm / len(squares)
    errors = np.zeros_like(squares)
    np.divide(differences, squares, out=errors, where=counted)
    worst = int(errors.argmax())
    return worst, float(errors[worst] ** 0.5)
