import math

import numpy as np
import pytest

from quantize.numerics import differences
from quantize.numerics.differences import difference


def naive(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Error, cosine and largest difference, value by value in Python's own doubles."""
    pairs = [(float(x), float(y)) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
    apart = math.fsum((x - y) ** 2 for x, y in pairs)
    aa, bb = math.fsum(x * x for x, _ in pairs), math.fsum(y * y for _, y in pairs)
    ab = math.fsum(x * y for x, y in pairs)
    return math.sqrt(apart / bb), ab / math.sqrt(aa * bb), max(abs(x - y) for x, y in pairs)


@pytest.mark.parametrize("shape", [(7,), (5, 33), (3, 4, 16)])
@pytest.mark.parametrize("step", [8, 1 << 22])
def test_against_sums_value_by_value(
    shape: tuple[int, ...], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "STEP", step)
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(shape).astype(np.float32)
    values = (reference + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    found = difference(values, reference)
    # both sum in double precision: only the order of additions differs
    assert (found.error, found.cosine, found.largest) == pytest.approx(naive(values, reference), rel=1e-12)
    assert not found.equal


def test_where_it_differs_most() -> None:
    reference = np.ones((6, 8), np.float32)
    reference[4] = 1e-3  # rounded to nothing, and not counted
    values = reference.copy()
    values[2] *= 0.5
    values[4] = 0.0
    values[5, 3] = 3.0
    found = difference(values, reference)
    assert (found.largest, found.largest_row) == (2.0, 5)
    assert found.worst_row == 5
    assert found.worst_row_error == pytest.approx(2 / math.sqrt(8))


def test_equal_zero_and_opposite() -> None:
    one, zero = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    same = difference(one, one)
    assert (same.equal, same.error, same.cosine) == (True, 0.0, 1.0)
    assert difference(-one, one).cosine == -1.0
    assert difference(zero, zero).cosine == 1.0
    nothing = difference(one, zero)
    assert (nothing.error, nothing.cosine, nothing.equal) == (math.inf, 0.0, False)
    assert difference(zero, one).cosine == 0.0
    assert difference(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).equal
    with pytest.raises(ValueError, match="shapes"):
        difference(one, one[:1])


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    reference = np.ones((2, 4), np.float32)
    values = reference.copy()
    values[0, 0], values[1, 1] = np.nan, np.inf
    found = difference(values, reference)
    assert (found.not_finite, found.error, found.equal) == (2, 0.0, False)
    assert difference(values, values).equal
