import numpy as np
import pytest

from quantize.numerics.resemblance import compare

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 64)).astype(np.float32)


def test_what_is_equal() -> None:
    likeness = compare(WEIGHT, WEIGHT)
    assert likeness.error == 0
    assert likeness.slope == pytest.approx(1)
    assert likeness.worst_cosine == pytest.approx(1)


def test_scales_that_grew_show_in_the_slope() -> None:
    likeness = compare(WEIGHT, WEIGHT * np.float32(1.5))
    assert likeness.slope == pytest.approx(1.5)
    assert likeness.error == pytest.approx(0.5, rel=1e-5)


def test_a_row_that_is_lost_shows_in_the_cosine() -> None:
    read = WEIGHT.copy()
    read[5] = 0
    likeness = compare(WEIGHT, read)
    assert likeness.worst_row == 5
    assert likeness.worst_cosine == 0


def test_small_rows_are_left_out() -> None:
    source = WEIGHT.copy()
    source[3] *= 0.01
    read = source.copy()
    read[3] = 0
    assert compare(source, read).worst_cosine == pytest.approx(1)


def test_zeros_must_stay_zeros() -> None:
    assert compare(np.zeros(8, np.float32), np.zeros(8, np.float32)).error == 0
    assert compare(np.zeros(8, np.float32), np.ones(8, np.float32)).slope == float("inf")


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ"):
        compare(WEIGHT, WEIGHT.T)
