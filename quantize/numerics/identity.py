"""Which source tensor, and which row, is this? The nearest one, whatever the distance.

A coarse recipe moves a tensor far from its source but still leaves it nearer to that than to any other; a
swapped tensor is nearer to another. The distance itself does not matter here. Equal sources, such as
untrained experts or copied layers, cannot be told apart.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from quantize.numerics.sketch import as_rows

#: the other must be nearer by this factor: what rounding leaves of sources that are nearly one is near to
#: both
NEARER = 1.5
#: the square of the distance to the other, over the other's square, above which a reading resembles neither:
#: a row that a coarse recipe rounds to almost nothing is near to every small row
ALIKE = 0.75
#: part of its source's norm within which a reading is its source's, whoever else is near: no rounding to 8
#: bits leaves more
SAME = 2.0**-6
#: rows whose norm is below this part of the tensor's root mean square are not looked at: a scale that a small
#: row shares with a large neighbour may round it to nothing, rightly
SMALL_ROW = 0.1
SAMPLES = 1024  # values that tell tensors apart
COLUMNS = 64  # columns that tell rows apart, before all columns are compared
ROW_WORK = 1 << 28  # products of rows with rows, for each of these columns
ROWS_AT_ONCE = 1 << 20  # distances in memory at a time
FEWEST = 32  # fewest values of a tensor, or of a row, that identify it

#: number of a row -> its values
Row = Callable[[int], np.ndarray]


def feature(values: np.ndarray, rescaled: bool) -> np.ndarray:
    """(SAMPLES,) values of a tensor at places that depend only on its shape; ``rescaled``: their signs, which
    no positive scale of a row or a column changes."""
    return _signed(values.reshape(-1)[feature_places(values.shape)].astype(np.float32), rescaled)


def feature_places(shape: tuple[int, ...]) -> np.ndarray:
    """Where they are, by their numbers among all values."""
    size = math.prod(shape)
    return np.random.default_rng(shape).integers(0, size, SAMPLES) if size > SAMPLES else np.arange(size)


def misplaced(read: np.ndarray, source: np.ndarray) -> Iterator[tuple[int, int]]:
    """(i, j) of readings i that are not of source i but of source j. ``read`` and ``source`` (n, values):
    features of n tensors of one shape."""
    if read.shape[-1] < FEWEST:
        return
    norms = _squares(source)
    for begin in range(0, len(read), 1024):
        part = read[begin : begin + 1024]
        for i, j in _others(part, np.arange(begin, begin + len(part)), source, norms):
            if _nearer(read[i], source[i], source[j]):
                yield i, j


def misplaced_row(read: np.ndarray, source: np.ndarray, rescaled: bool) -> tuple[int, int] | None:
    """The first row i of ``read`` (rows, columns) that is not row i of ``source`` but row j of it; None where
    there is none.

    Of more than 16,384 rows, an evenly spread sample is compared.
    """
    a, b = as_rows(read), as_rows(source)
    count, columns = b.shape
    rows = RowIdentity(count, columns, rescaled)
    rows.add(a, b)
    return rows.misplaced(a.__getitem__, b.__getitem__)


class RowIdentity:
    """``misplaced_row`` of a tensor of (``count``, ``columns``) that comes some rows at a time."""

    def __init__(self, count: int, columns: int, rescaled: bool):
        self.rescaled, self._told = rescaled, columns >= FEWEST and count >= 2
        if not self._told:
            return
        wanted = min(count, max(256, ROW_WORK // count))
        self._looked = np.unique(np.linspace(0, count - 1, wanted).round().astype(int))
        self._taken = np.unique(np.linspace(0, columns - 1, min(columns, COLUMNS)).round().astype(int))
        self._norms = np.empty(count)
        self._few = np.empty((len(self._looked), len(self._taken)), np.float32)
        self._fewer = np.empty((count, len(self._taken)), np.float32)
        self._filled = 0

    def add(self, read: np.ndarray, source: np.ndarray) -> None:
        """The next rows (n, columns) of each."""
        if not self._told:
            return
        begin, end = self._filled, self._filled + len(source)
        self._norms[begin:end] = np.sqrt(_squares(source))
        self._fewer[begin:end] = source[:, self._taken]
        mine = slice(*np.searchsorted(self._looked, [begin, end]))
        self._few[mine] = read[self._looked[mine] - begin][:, self._taken]
        self._filled = end

    def misplaced(self, read: Row, source: Row) -> tuple[int, int] | None:
        """``read`` and ``source``: a row of each by its number."""
        if not self._told:
            return None
        norms = self._norms
        large = norms >= SMALL_ROW * np.sqrt(np.square(norms).mean())
        kept = large[self._looked]
        looked = self._looked[kept]
        few, fewer = _signed(self._few[kept], self.rescaled), _signed(self._fewer, self.rescaled)
        squares_b = _squares(fewer)
        squares_b[~large] = np.inf  # nobody's
        step = max(1, min(256, ROWS_AT_ONCE // len(fewer)))
        for begin in range(0, len(looked), step):
            for i, j in _others(few[begin : begin + step], looked[begin : begin + step], fewer, squares_b):
                full = (_signed(x, self.rescaled) for x in (read(i), source(i), source(j)))
                if _nearer(*full):
                    return i, j
        return None


def _others(
    read: np.ndarray, own: np.ndarray, source: np.ndarray, norms: np.ndarray
) -> Iterator[tuple[int, int]]:
    """(i, j) where of the rows ``read``, whose numbers are ``own``, i is nearer to row j of ``source`` than
    to its own, by so much that it is worth a closer look. ``norms``: the squares of ``source``'s rows."""
    apart = (read @ source.T) * -2.0 + norms  # float64; the squares of the rows of ``read`` are missing
    nearest = apart.argmin(1)
    mine, least = (apart[np.arange(len(read)), those] + _squares(read) for those in (own, nearest))
    worth = (nearest != own) & (mine > SAME**2 * norms[own]) & (least * NEARER <= mine)
    yield from zip(own[worth].tolist(), nearest[worth].tolist(), strict=True)


def _nearer(read: np.ndarray, own: np.ndarray, other: np.ndarray) -> bool:
    x, a, b = (part.astype(np.float64) for part in (read, own, other))
    mine, theirs = float(np.square(x - a).sum()), float(np.square(x - b).sum())
    if theirs > ALIKE * float(np.square(b).sum()):
        return False
    return mine > SAME**2 * float(np.square(a).sum()) and mine > NEARER**2 * theirs


def _signed(values: np.ndarray, rescaled: bool) -> np.ndarray:
    return np.sign(values) if rescaled else values


def _squares(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found
