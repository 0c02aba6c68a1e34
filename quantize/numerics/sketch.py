"""Two fixed random projections of every row: 16 bytes that represent a row, to check later whether another
reading is equal."""

from functools import lru_cache

import numpy as np

PROJECTIONS = 2
#: rows at a time: double precision of a whole embedding would take gigabytes
CHUNK = 1 << 22


def sketch(values: np.ndarray) -> np.ndarray:
    """``values`` (..., columns) float32 -> float64 (rows, PROJECTIONS); a vector is one row.

    Each column has its own factors, random in sign and between 0.5 and 1.5 in size: this shows one changed
    value, and two exchanged columns or rows.
    """
    rows = as_rows(values)
    by = factors(rows.shape[1])
    found = np.empty((len(rows), PROJECTIONS))
    for part in chunks(rows):
        found[part] = rows[part].astype(np.float64) @ by
    return found


def differing_rows(a: np.ndarray, b: np.ndarray, values: np.ndarray, rounding: float) -> np.ndarray:
    """Rows whose sketches ``a`` and ``b`` differ by more than ``rounding``, a part of each value, can
    explain; NaN in ``b`` says that nothing is known of that row. ``values``: what ``a`` is the sketch of."""
    rows = as_rows(values)
    norms = np.empty(len(rows))
    for part in chunks(rows):
        norms[part] = np.sqrt(np.square(rows[part], dtype=np.float64).sum(1))
    # By Cauchy-Schwarz the most that such rounding moves a projection; 1e-30 for the sums of rows of zeros.
    most = rounding * 1.5 * np.sqrt(rows.shape[1]) * norms + 1e-30
    found: np.ndarray = np.flatnonzero((np.abs(a - b).max(1, initial=0) > most) & ~np.isnan(b).any(1))
    return found


def as_rows(values: np.ndarray) -> np.ndarray:
    return (
        values.reshape(-1, values.shape[-1] if values.ndim else 1)
        if values.size
        else np.empty((0, 1), np.float32)
    )


def chunks(rows: np.ndarray) -> list[slice]:
    step = max(1, CHUNK // rows.shape[1])
    return [slice(begin, begin + step) for begin in range(0, len(rows), step)]


@lru_cache(maxsize=64)
def factors(columns: int) -> np.ndarray:
    """float64 (columns, PROJECTIONS), the same every time."""
    random = np.random.default_rng(columns)
    signs = random.integers(0, 2, (columns, PROJECTIONS)) * 2 - 1
    found: np.ndarray = signs * random.uniform(0.5, 1.5, (columns, PROJECTIONS))
    return found
