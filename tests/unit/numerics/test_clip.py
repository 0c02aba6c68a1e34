"""The search of clipping bounds, against every candidate tried on every row in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.numerics.clip import best_clip  # noqa: E402


def round_into(source: "torch.Tensor", target: "torch.Tensor") -> None:
    """Symmetric, 3 bits, one scale a group."""
    scale = source.abs().amax(-1, keepdim=True) / 3
    target.copy_(torch.round(source / scale).clamp(-4, 3) * scale)


def naive(weight: np.ndarray, inputs: np.ndarray, group: int) -> np.ndarray:
    """(out, groups) bounds: each group's products with every row, before and after rounding, in float64."""
    outputs, width = weight.shape
    found = np.empty((outputs, width // group))
    rows = inputs.reshape(-1, width)
    rows = rows[:: max(1, len(rows) // 512)]
    for out in range(outputs):
        for number in range(width // group):
            part = slice(number * group, (number + 1) * group)
            values = weight[out, part]
            least = np.inf
            for step in range(10):
                bound = np.abs(values).max() * (1 - step / 20)
                clamped = np.clip(values, -bound, bound)
                scale = np.abs(clamped).max() / 3
                rounded = np.clip(np.round(clamped / scale), -4, 3) * scale
                error = np.mean((rows[:, part] @ (rounded - values)) ** 2)
                if error < least:
                    least, found[out, number] = error, bound
    return found


@pytest.mark.parametrize("group", [8, 16, -1])
@pytest.mark.parametrize("tokens", [5, 1300])  # of the second, every other row is used
def test_bounds_are_those_of_the_naive_search(group: int, tokens: int) -> None:
    random = np.random.default_rng(group + tokens)
    weight = random.standard_t(3, (12, 32))
    inputs = random.standard_normal((1, tokens, 32)) * np.exp(random.standard_normal(32))
    found = best_clip(torch.from_numpy(weight), torch.from_numpy(inputs).float(), group, round_into)
    size = group if group > 0 else 32
    assert found.shape == (12, 32 // size, 1)
    expected = naive(weight, inputs.astype(np.float32).astype(np.float64), size)
    assert (expected < np.abs(weight).reshape(12, -1, size).max(-1)).any()
    np.testing.assert_allclose(found[..., 0].numpy(), expected, rtol=1e-12)


def test_a_group_that_nothing_reaches_keeps_its_largest_weight() -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 16)))
    found = best_clip(weight, torch.zeros(1, 8, 16), 8, round_into)
    assert torch.equal(found[..., 0], weight.reshape(4, 2, 8).abs().amax(-1))
