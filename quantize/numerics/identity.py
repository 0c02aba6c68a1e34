"""Which source tensor, and which row, is this? The nearest one, whatever the distance.

A coarse recipe moves a tensor far from its source but still leaves it nearer to that than to any other; a
swapped tensor is nearer to another. The distance itself does not matter here. Equal sources, such as
untrained experts or copied layers, cannot be told apart.
"""

from collections.abc import Iterator

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
FEWEST = 32  # fewest values of a tensor, or of a row, that identify it


def feature(values: np.ndarray, rescaled: bool) -> np.ndarray:
    """(SAMPLES,) values of a tensor at places that depend only on its shape; ``rescaled``: their signs, which
    no positive scale of a row or a column changes."""
    flat = values.reshape(-1)
    places = (
        np.random.default_rng(values.shape).integers(0, flat.size, SAMPLES)
        if flat.size > SAMPLES
        else slice(None)
    )
    taken = flat[places].astype(np.float32)
    return np.sign(taken) if rescaled else taken


def misplaced(read: np.ndarray, source: np.ndarray) -> Iterator[tuple[int, int]]:
    """(i, j) of readings i that are not of source i but of source j. ``read`` and ``source`` (n, values):
    features of n tensors of one shape."""
    if read.shape[-1] < FEWEST:
        return
    norms, theirs = _squares(source), _squares(read)
    for begin in range(0, len(read), 1024):
        part = slice(begin, begin + 1024)
        squares = theirs[part, None] + norms[None, :] - 2.0 * (read[part] @ source.T).astype(np.float64)
        for i in range(begin, begin + len(squares)):
            j = _other(squares[i - begin], i, norms)
            if j is not None and _nearer(read[i], source[i], source[j]):
                yield i, j


def misplaced_row(read: np.ndarray, source: np.ndarray, rescaled: bool) -> tuple[int, int] | None:
    """The first row i of ``read`` (rows, columns) that is not row i of ``source`` but row j of it; None where
    there is none.

    Of more than 16,384 rows, an evenly spread sample is compared.
    """
    a, b = as_rows(read), as_rows(source)
    count, columns = b.shape
    if columns < FEWEST or count < 2:
        return None
    norms = np.sqrt(_squares(b))
    large = norms >= SMALL_ROW * np.sqrt(np.square(norms).mean())
    wanted = min(count, max(256, ROW_WORK // count))
    looked = np.unique(np.linspace(0, count - 1, wanted).round().astype(int))
    looked = looked[large[looked]]
    taken = np.unique(np.linspace(0, columns - 1, min(columns, COLUMNS)).round().astype(int))
    few, fewer = _signed(a[looked][:, taken], rescaled), _signed(b[:, taken], rescaled)
    squares_b = _squares(fewer)
    squares_b[~large] = np.inf  # nobody's
    for begin in range(0, len(looked), 256):
        block = few[begin : begin + 256]
        squares = _squares(block)[:, None] + squares_b[None, :] - 2.0 * (block @ fewer.T).astype(np.float64)
        for row, i in zip(squares, looked[begin : begin + 256], strict=True):
            j = _other(row, int(i), squares_b)
            if j is not None and _nearer(*(_signed(x, rescaled) for x in (a[i], b[i], b[j]))):
                return int(i), j
    return None


def _other(squares: np.ndarray, own: int, norms: np.ndarray) -> int | None:
    """The nearest source, where that is another than ``own`` by so much that it is worth a closer look."""
    nearest = int(squares.argmin())
    if nearest == own or squares[own] <= SAME**2 * norms[own] or squares[nearest] * NEARER > squares[own]:
        return None
    return nearest


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
