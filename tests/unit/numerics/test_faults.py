"""Each measure of a fault against a naive one in float64, value by value."""

import numpy as np
import pytest

from quantize.numerics.faults import misgrouped, nearer_to, same_signs, zero_point_shift

random = np.random.default_rng(0)


def test_shift_of_zero_points() -> None:
    outputs, inputs = 6, 40
    source = random.normal(size=(outputs, inputs)).astype(np.float32)
    scales = random.uniform(0.1, 0.3, (outputs, inputs)).astype(np.float32)
    factors = random.uniform(0.5, 2, inputs)
    values = (source * factors + scales).astype(np.float32)
    total = 0.0
    for i in range(inputs):
        own = sum(float(source[o, i]) ** 2 for o in range(outputs))
        factor = sum(float(values[o, i]) * float(source[o, i]) for o in range(outputs)) / own
        total += sum(
            (float(values[o, i]) - factor * float(source[o, i])) / float(scales[o, i]) for o in range(outputs)
        )
    found = zero_point_shift(values, source, scales)
    assert found == pytest.approx(total / source.size, rel=1e-12)
    assert zero_point_shift(source, source, np.zeros_like(scales)) == 0
    assert zero_point_shift(source, source, scales) == 0


@pytest.mark.parametrize("outputs", [5, 130])
def test_order_of_groups(outputs: int) -> None:
    inputs, count = 24, 3
    groups = random.integers(0, count, inputs)
    codes = random.integers(0, 16, (inputs, outputs)).astype(np.uint8)
    zeros = random.integers(6, 10, (count, outputs))
    scales = random.uniform(0.5, 2, (count, outputs)).astype(np.float32)
    source = (scales[groups] * (codes - zeros[groups].astype(np.float64))).T.astype(np.float32)
    other, left, best = misgrouped(codes, zeros, scales, groups, source)
    assert (other, best) == (0, 0)
    told = np.zeros(inputs, np.int64)  # all said to be of the first
    taken = np.unique(np.linspace(0, outputs - 1, min(64, outputs)).round().astype(int))
    errors = np.zeros((inputs, count))
    for i in range(inputs):
        for g in range(count):
            for o in taken:
                value = float(scales[g, o]) * (float(codes[i, o]) - float(zeros[g, o]))
                errors[i, g] += (value - float(source[o, i])) ** 2
    other, left, best = misgrouped(codes, zeros, scales, told, source)
    assert other == np.mean(errors.argmin(1) != 0)
    assert left == pytest.approx(errors.min(1).sum() / errors[:, 0].sum(), abs=1e-9)
    assert best == pytest.approx(0, abs=1e-9)


def test_signs_and_distances() -> None:
    source = np.array([[3.0, -3.0, 0.01, 2.0], [-2.0, 2.5, -0.02, 2.0]], np.float32)
    values = np.where(source > 2.7, -source, source) * 10
    # six values are larger than half the root mean square, one of them has another sign
    assert same_signs(values, source) == pytest.approx(5 / 6)
    assert same_signs(source, np.zeros_like(source)) == 1
    a, b, x = (random.normal(size=(7, 11)).astype(np.float32) for _ in range(3))
    one, two = (np.sqrt(((x.astype(np.float64) - y) ** 2).sum()) for y in (a, b))
    assert nearer_to(x, a, b) == pytest.approx(one / two)
    assert nearer_to(x, x, b) == 0
    assert nearer_to(x, a, x) == float("inf")
    assert nearer_to(x, x, x) == 1
