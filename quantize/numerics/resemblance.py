"""Does a weight that was read back resemble its source? Direction and size, by tensor and by row."""

from dataclasses import dataclass

import numpy as np

#: rows whose root mean square is below this part of the tensor's are not looked at one by one: a block scale
#: that a small row shares with a large neighbour may round it to nothing, rightly
SMALL_ROW = 0.1


@dataclass(frozen=True)
class Resemblance:
    """``error``: Frobenius norm of the difference over the source's. ``slope``: least-squares factor that
    takes the source to what was read (1 where nothing changed, 0 where nothing is left). ``worst_row`` has
    the smallest ``worst_cosine``; -1 without rows.
    """

    error: float
    slope: float
    worst_row: int
    worst_cosine: float


def compare(source: np.ndarray, read: np.ndarray) -> Resemblance:
    """``source`` and ``read`` (..., columns) float32 of one shape. A vector is one row.

    Errors: ValueError where the shapes differ.
    """
    if source.shape != read.shape:
        raise ValueError(f"shapes {source.shape} and {read.shape} differ")
    columns = source.shape[-1] if source.ndim else 1
    a, b = source.reshape(-1, columns), read.reshape(-1, columns)
    if a.size == 0:
        return Resemblance(0.0, 1.0, -1, 1.0)
    aa, bb, ab, dd = (np.zeros(len(a)) for _ in range(4))
    # rows at a time: double precision of a whole embedding would take gigabytes
    step = max(1, (1 << 22) // columns)
    for begin in range(0, len(a), step):
        part = slice(begin, begin + step)
        x, y = a[part].astype(np.float64), b[part].astype(np.float64)
        aa[part], bb[part], ab[part] = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
        dd[part] = ((x - y) ** 2).sum(1)
    norm = aa.sum()
    if norm == 0:
        same = not bb.sum() > 0
        return Resemblance(0.0 if same else float("inf"), 1.0 if same else float("inf"), -1, 1.0)
    large = aa >= (SMALL_ROW**2) * norm / len(a)
    product = np.sqrt(aa * bb)
    cosine = np.divide(ab, product, out=np.zeros_like(ab), where=product > 0)
    cosine[~large] = 1.0
    worst = int(cosine.argmin())
    return Resemblance(float(np.sqrt(dd.sum() / norm)), float(ab.sum() / norm), worst, float(cosine[worst]))
