"""Who is whose: what changed places is named, what a coarse recipe did is nobody's fault, and equals are
nobody's alone."""

from collections.abc import Callable

import numpy as np
import pytest

from quantize.numerics.identity import feature, misplaced, misplaced_row

RNG = np.random.default_rng(0)


def rounded(weight: np.ndarray, bits: int, group: int = 32) -> np.ndarray:
    """To nearest, symmetric, in groups."""
    grouped = weight.reshape(-1, group)
    scale = np.abs(grouped).max(1, keepdims=True) / max(1, 2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    result: np.ndarray = (
        np.round(grouped / scale).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
    ).reshape(weight.shape)
    return result


def tensors(count: int = 6) -> list[np.ndarray]:
    return [
        RNG.standard_normal((48, 64)).astype(np.float32) * np.float32(RNG.uniform(0.5, 2))
        for _ in range(count)
    ]


def found(read: list[np.ndarray], source: list[np.ndarray], rescaled: bool = False) -> list[tuple[int, int]]:
    features = [np.stack([feature(values, rescaled) for values in side]) for side in (read, source)]
    return list(misplaced(*features))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_moves_nothing(bits: int) -> None:
    source = tensors()
    read = [rounded(values, bits) for values in source]
    assert found(read, source) == []
    assert all(misplaced_row(a, b, False) is None for a, b in zip(read, source, strict=True))


@pytest.mark.parametrize(("bits", "rescaled"), [(2, False), (4, False), (8, False), (4, True)])
def test_two_experts_that_changed_places(bits: int, rescaled: bool) -> None:
    source = tensors()
    read = [rounded(values, bits) for values in source]
    read[1], read[4] = read[4], read[1]
    assert found(read, source, rescaled) == [(1, 4), (4, 1)]


def test_equal_and_empty_sources_are_nobodys() -> None:
    """Copied layers, experts of zeros, norms of ones, and sources that differ by less than the rounding."""
    first, second = tensors(2)
    nearly = first + np.float32(1e-3) * RNG.standard_normal(first.shape).astype(np.float32)
    source = [first, first.copy(), np.zeros_like(first), np.zeros_like(first), second, nearly]
    read = [rounded(values, 3) for values in source]
    read[0], read[1] = read[1], read[0]
    assert found(read, source) == []
    ones = [np.ones(64, np.float32), np.ones(64, np.float32), np.full(64, 1.001, np.float32)]
    assert found([ones[0], ones[1], ones[0]], ones) == []


def test_few_values_tell_nothing() -> None:
    source = [np.float32([1.0]), np.float32([2.0])]
    assert found([source[1], source[0]], source) == []


def fold(weight: np.ndarray, dead: bool = False) -> np.ndarray:
    """What AWQ does to a matrix: positive factors for its columns and, where another layer follows it, for
    its rows."""
    columns, rows = RNG.uniform(0.2, 5, weight.shape[1]), RNG.uniform(0.2, 5, (len(weight), 1))
    if dead:
        columns, rows = columns * 344, rows / 344
        columns[7] = 1e-4
    result: np.ndarray = (weight * columns * rows).astype(np.float32)
    return result


@pytest.mark.parametrize("dead", [False, True])
def test_scales_that_a_method_may_move_are_left_out(dead: bool) -> None:
    source = tensors()
    read = [rounded(fold(values, dead), 4) for values in source]
    assert found(read, source, rescaled=True) == []
    assert all(misplaced_row(a, b, True) is None for a, b in zip(read, source, strict=True))
    read[2], read[3] = read[3], read[2]
    assert found(read, source, rescaled=True) == [(2, 3), (3, 2)]


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize(
    "order", [lambda w: np.roll(w, 16, 0), lambda w: w[::-1], lambda w: w[[1, 0, *range(2, 48)]]]
)
def test_rows_in_another_order(order: Callable[[np.ndarray], np.ndarray], rescaled: bool) -> None:
    source = tensors(1)[0]
    read = rounded(order(source), 4)
    moved = misplaced_row(read, source, rescaled)
    assert moved is not None
    i, j = moved
    np.testing.assert_array_equal(order(source)[i], source[j])


def test_rows_that_are_equal_or_small_are_nobodys() -> None:
    source = tensors(1)[0]
    source[10] = source[20]
    source[30] = 0
    source[31] *= 1e-3
    read = rounded(source, 4)
    read[31] = 0
    assert misplaced_row(read, source, False) is None


def test_what_rounds_to_almost_nothing_resembles_nobody() -> None:
    """At two bits a row with one large value keeps little else, and is then near to every small row."""
    source = tensors(1)[0]
    source[40:] *= 0.2
    read = source.copy()
    read[5] *= 0.01
    assert misplaced_row(read, source, False) is None
    few = [source, 0.2 * source[::-1].copy()]
    assert found([0.01 * few[0], few[1]], few) == []
