"""A sketch of 16 bytes a row tells any two readings apart, and takes no notice of float32's own rounding."""

from collections.abc import Callable

import numpy as np
import pytest

from quantize.numerics.sketch import differing_rows, sketch

RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-8, 8, (40, 96)).astype(np.float32) * RNG.uniform(0.5, 1, (40, 3)).astype(
    np.float32
).repeat(32, 1)
ROUNDING = 2.0**-20


def differ(values: np.ndarray, of: np.ndarray = WEIGHT) -> list[int]:
    return differing_rows(sketch(values), sketch(of), values, ROUNDING).tolist()


def one_value(w: np.ndarray) -> None:
    w[3, 7] += 0.5


def two_columns(w: np.ndarray) -> None:
    w[3, [1, 2]] = w[3, [2, 1]] + np.float32(0.25)


def scales_of_the_neighbour(w: np.ndarray) -> None:
    w[3, 32:64] *= np.float32(1.01)


@pytest.mark.parametrize("change", [one_value, two_columns, scales_of_the_neighbour])
def test_what_changed_is_noticed(change: Callable[[np.ndarray], None]) -> None:
    values = WEIGHT.copy()
    change(values)
    assert differ(values) == [3]


def test_rows_that_changed_places() -> None:
    values = WEIGHT.copy()
    values[[4, 9]] = values[[9, 4]]
    assert differ(values) == [4, 9]


def test_arithmetic_in_another_order_is_not() -> None:
    assert differ(WEIGHT) == []
    assert differ((WEIGHT.astype(np.float64) * (1 + 2.0**-23)).astype(np.float32)) == []


def test_what_is_not_known_is_not_compared() -> None:
    known = sketch(WEIGHT)
    known[5] = np.nan
    assert differing_rows(sketch(WEIGHT * 2), known, WEIGHT * 2, ROUNDING).tolist() == [
        i for i in range(40) if i != 5
    ]


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    assert differ(values, values) == []
