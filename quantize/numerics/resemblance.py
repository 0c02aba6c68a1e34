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
    sums = Sums()
    sums.add(source, read)
    return sums.resemblance()


class Sums:
    """``compare`` of a tensor that comes some rows at a time."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []  # (4, rows): squares of source, of read, products, of differences

    def add(self, source: np.ndarray, read: np.ndarray) -> None:
        """The next rows. Errors: ValueError where the shapes differ."""
        if source.shape != read.shape:
            raise ValueError(f"shapes {source.shape} and {read.shape} differ")
        columns = source.shape[-1] if source.ndim else 1
        if not source.size:
            return
        a, b = source.reshape(-1, columns), read.reshape(-1, columns)
        found = np.zeros((4, len(a)))
        # rows at a time: double precision of a whole embedding would take gigabytes
        step = max(1, (1 << 22) // columns)
        for begin in range(0, len(a), step):
            part = slice(begin, begin + step)
            x, y = a[part].astype(np.float64), b[part].astype(np.float64)
            found[0, part], found[1, part], found[2, part] = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
            found[3, part] = ((x - y) ** 2).sum(1)
        self._rows.append(found)

    def resemblance(self) -> Resemblance:
        if not self._rows:
            return Resemblance(0.0, 1.0, -1, 1.0)
        aa, bb, ab, dd = np.concatenate(self._rows, axis=1)
        norm = aa.sum()
        if norm == 0:
            same = not bb.sum() > 0
            return Resemblance(0.0 if same else float("inf"), 1.0 if same else float("inf"), -1, 1.0)
        large = aa >= (SMALL_ROW**2) * norm / len(aa)
        product = np.sqrt(aa * bb)
        cosine = np.divide(ab, product, out=np.zeros_like(ab), where=product > 0)
        cosine[~large] = 1.0
        worst = int(cosine.argmin())
        slope = float(ab.sum() / norm)
        return Resemblance(float(np.sqrt(dd.sum() / norm)), slope, worst, float(cosine[worst]))
