"""Ways in which quantized weights are commonly wrong, told by arithmetic from the weights they are of."""

import numpy as np

#: values of a source's row that are looked at for signs: those larger than this part of the root mean square
LARGE = 0.5
#: outputs that are looked at for the order of groups
SAMPLE = 64
#: inputs looked at together
STEP = 512


def zero_point_shift(values: np.ndarray, source: np.ndarray, scales: np.ndarray) -> float:
    """By how many codes the zero points are off, as a mean: 0 where they are right, 1 where every value is
    one step too large.

    ``values``, ``source`` and ``scales`` (o, i) float32: weights as read, as they were, and the step of each.
    A factor for each input, as AWQ has them, is taken out first, by least squares. Sums are in float64.
    """
    x, y = values.astype(np.float64), source.astype(np.float64)
    own = (y * y).sum(0)
    factors = np.divide((x * y).sum(0), own, out=np.ones_like(own), where=own > 0)
    steps = scales.astype(np.float64)
    known = steps > 0
    if not known.any():
        return 0.0
    return float(((x - y * factors)[known] / steps[known]).mean())


def misgrouped(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray, source: np.ndarray
) -> tuple[float, float, float]:
    """(part of the inputs that another group's scales explain best, what of the squared error is left where
    each input has the group that explains it best, the same over the sum of the weights' squares).

    ``codes`` (i, o), ``zeros`` and ``scales`` (g, o), ``groups`` (i,): the group that the file names for each
    input; ``source`` (o, i). Of at most ``SAMPLE`` outputs, evenly spread. Sums are in float64.
    """
    outputs = np.unique(np.linspace(0, codes.shape[1] - 1, min(SAMPLE, codes.shape[1])).round().astype(int))
    z, s = (part[:, outputs].astype(np.float32) for part in (zeros, scales))
    wanted = source[outputs].T.astype(np.float32)
    taken = codes[:, outputs].astype(np.float32)
    other, told, best = 0, 0.0, 0.0
    energy = float(np.square(wanted, dtype=np.float64).sum())
    for begin in range(0, len(taken), STEP):
        part = slice(begin, begin + STEP)
        apart = s[None] * (taken[part, None] - z[None]) - wanted[part, None]
        errors = np.square(apart, dtype=np.float64).sum(-1)
        rows, mine = np.arange(len(errors)), groups[part]
        nearest = errors.argmin(1)
        told += float(errors[rows, mine].sum())
        best += float(errors[rows, nearest].sum())
        other += int((nearest != mine).sum())
    return other / max(1, len(taken)), best / told if told else 1.0, best / energy if energy else 0.0


def same_signs(values: np.ndarray, source: np.ndarray) -> float:
    """Part of the large values of ``source`` whose sign ``values``, of the same shape, have: 0.5 where the
    two have nothing to do with one another, 1 where no value is large."""
    size = np.sqrt(np.square(source, dtype=np.float64).mean()) if source.size else 0.0
    large = np.abs(source) > LARGE * size
    count = int(large.sum())
    return float((np.sign(values[large]) == np.sign(source[large])).sum() / count) if count else 1.0


def nearer_to(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """The distance of ``values`` from ``first`` over that from ``second``, all of one shape: below 1 where
    ``first`` is nearer; 0 where it is equal to it."""
    total = [0.0, 0.0]
    columns = values.shape[-1]
    rows = [each.reshape(-1, columns) for each in (values, first, second)]
    step = max(1, (1 << 22) // max(1, columns))
    for begin in range(0, len(rows[0]), step):
        x, a, b = (each[begin : begin + step].astype(np.float64) for each in rows)
        total[0] += float(np.square(x - a).sum())
        total[1] += float(np.square(x - b).sum())
    return float(np.sqrt(total[0] / total[1])) if total[1] else (1.0 if total[0] == 0 else float("inf"))
