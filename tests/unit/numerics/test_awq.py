"""AWQ's search of scales against a naive one in float64, and against the outputs that it is for."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.numerics.awq import INPUT_EXPONENTS, WEIGHT_EXPONENTS, Sharing, clip, search_scales  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402
from quantize.numerics.rtn import round_to_nearest  # noqa: E402

GRIDS = [Grid(4, 32, False), Grid(4, 32, True), Grid(3, -1, False)]


def problem(outputs: int, inputs: int, seed: int) -> "tuple[np.ndarray, np.ndarray]":
    """Heavy-tailed weights, and rows of correlated inputs some of which are far larger than the others."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((inputs, inputs)) * 0.2 + np.eye(inputs)
    rows = random.standard_normal((4 * inputs, inputs)) @ mix * np.exp(1.5 * random.standard_normal(inputs))
    return (random.standard_t(4, (outputs, inputs)) * 0.05).astype(np.float32), rows.astype(np.float32)


def naive_rounded(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """Each group of each row in a loop, from its extremes, scales in half precision; float64."""
    out = np.empty(weight.shape)
    size = grid.columns(weight.shape[1])
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], size):
            part = weight[row, first : first + size].astype(np.float64)
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            if grid.symmetric:
                step, zero = float(np.float16(2 * max(-low, high) / grid.top)), grid.middle
            else:
                step = float(np.float16((high - low) / grid.top))
                zero = int(np.clip(np.round(-low / step), 0, grid.top))
            codes = np.clip(np.round(part / step) + zero, 0, grid.top)
            out[row, first : first + size] = step * (codes - zero)
    return out


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scales_are_those_of_a_naive_search(grid: Grid) -> None:
    """The same candidate for each group, or one whose error is the same to float32's rounding (a code on the
    edge between two changes it by less than 1e-3)."""
    weight, rows = problem(16, 64, 3)
    squares = (rows.astype(np.float64) ** 2).sum(0)
    found = search_scales([Sharing(torch.from_numpy(weight), torch.from_numpy(squares).float())], grid)
    size = grid.columns(64)
    least = np.full(64 // size, np.inf)
    for one in (0.0, *INPUT_EXPONENTS):
        for other in WEIGHT_EXPONENTS if one else (0.0,):
            grouped = np.abs(weight.astype(np.float64)).reshape(16, -1, size)
            heavy = (grouped / grouped.max(2, keepdims=True)).sum(0)
            large = np.sqrt(squares).reshape(-1, size)
            scales = large**one / heavy**other
            scales /= np.exp(np.log(scales).mean(1, keepdims=True))
            scaled = weight * scales.reshape(-1)
            error = ((naive_rounded(scaled, grid) - scaled) ** 2).sum(0) * squares / scales.reshape(-1) ** 2
            least = np.minimum(least, error.reshape(-1, size).sum(1))
    assert found.error == pytest.approx(least.sum(), rel=1e-3)
    plain = (((naive_rounded(weight, grid) - weight) ** 2).sum(0) * squares).sum()
    assert found.plain == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", GRIDS[:2], ids=str)
def test_outputs_are_nearer_than_rounded_to_nearest(seed: int, grid: Grid) -> None:
    """Of the inputs that it was searched on, by the products themselves."""
    weight, rows = (torch.from_numpy(each) for each in problem(48, 128, seed))
    squares = rows.square().sum(0)
    found = search_scales([Sharing(weight, squares)], grid)
    assert found.error <= found.plain
    blocks = blocks_of(rows.numpy(), 32) / found.values.reshape(-1, 32, 1) / found.values.reshape(-1, 1, 32)
    scaled = clip(weight * found.values, blocks, grid).values() / found.values
    nearest = round_to_nearest(weight, grid).values()

    def error(values: "torch.Tensor") -> float:
        return float((rows @ (values - weight).T).square().mean())

    assert error(scaled) < 0.8 * error(nearest)


def test_columns_of_one_origin_get_one_scale() -> None:
    """Two heads of 32 that share their values, in groups of 32: what is best for both together."""
    weight, rows = problem(24, 128, 5)
    origin = torch.cat([torch.arange(32), torch.arange(32), torch.arange(32) + 32, torch.arange(32) + 32])
    sharing = [Sharing(torch.from_numpy(weight), torch.from_numpy(rows).square().sum(0))]
    found = search_scales(sharing, Grid(4, 32, False), origin)
    values = found.values.reshape(4, 32)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[2], values[3])
    assert not torch.equal(values[0], values[2])
    assert found.error <= found.plain
    assert found.error >= search_scales(sharing, Grid(4, 32, False)).error


def test_matrices_that_share_inputs_are_searched_together() -> None:
    first, rows = problem(16, 64, 1)
    second = problem(40, 64, 2)[0]
    squares = torch.from_numpy(rows).square().sum(0)
    apart = [Sharing(torch.from_numpy(each), squares) for each in (first, second)]
    joined = [Sharing(torch.from_numpy(np.concatenate([first, second])), squares)]
    one, other = search_scales(apart, GRIDS[0]), search_scales(joined, GRIDS[0])
    assert one.error == pytest.approx(other.error, rel=1e-4)
    assert torch.allclose(one.values, other.values)


def test_fewer_rows_estimate_the_same_error() -> None:
    """256 of 2,048 rows that are alike: a sum over an eighth of them, times eight, is within 10 %."""
    weight, rows = problem(2048, 64, 4)
    sharing = [Sharing(torch.from_numpy(weight), torch.from_numpy(rows).square().sum(0))]
    few, every = search_scales(sharing, GRIDS[0]), search_scales(sharing, GRIDS[0], rows=2048)
    assert few.error == pytest.approx(every.error, rel=0.1)


@pytest.mark.parametrize("silent", [slice(0, 3), slice(0, 64)])
def test_inputs_and_weights_of_zero_are_left_alone(silent: slice) -> None:
    weight, rows = problem(16, 64, 6)
    rows[:, silent] = 0
    weight[:, 10] = 0
    found = search_scales(
        [Sharing(torch.from_numpy(weight), torch.from_numpy(rows).square().sum(0))], GRIDS[0]
    )
    assert bool(torch.isfinite(found.values).all())
    assert bool((found.values > 0).all())
    if silent == slice(0, 64):
        assert torch.equal(found.values, torch.ones(64))


def blocks_of(rows: np.ndarray, size: int) -> "torch.Tensor":
    grouped = torch.from_numpy(rows).unflatten(1, (-1, size)).transpose(0, 1)
    return grouped.transpose(1, 2) @ grouped


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ranges_cost_less_than_a_naive_grid(grid: Grid) -> None:
    """In float64, each group of each row in a loop, over the same shares of its extremes: least squares come
    on top, so that no group may be worse, but for a code on the edge between two (1e-3)."""
    weight, rows = problem(8, 64, 7)
    size = grid.columns(64)
    blocks = blocks_of(rows, size)
    values = clip(torch.from_numpy(weight), blocks, grid).values().numpy()
    better = 0
    for row in range(8):
        for group in range(64 // size):
            columns = slice(group * size, (group + 1) * size)
            part, moments = weight[row, columns].astype(np.float64), blocks[group].double().numpy()

            def error(found: np.ndarray, part: np.ndarray = part, moments: np.ndarray = moments) -> float:
                return float((found - part) @ moments @ (found - part))

            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            least = np.inf
            for share in np.linspace(1.06, 0.485, 24):
                extent = 2 * max(-low, high) if grid.symmetric else high - low
                step = float(np.float16(extent * share / grid.top))
                zero = grid.middle if grid.symmetric else np.clip(np.round(-low * share / step), 0, grid.top)
                least = min(least, error(step * (np.clip(np.round(part / step) + zero, 0, grid.top) - zero)))
            mine = error(values[row, columns].astype(np.float64))
            assert mine <= least * 1.001
            better += mine < least * 0.999
    assert better


def test_codes_of_ranges_are_what_a_file_can_hold() -> None:
    weight, rows = problem(8, 64, 8)
    weight[:, :32] = 0
    codes = clip(torch.from_numpy(weight), blocks_of(rows, 32), Grid(4, 32, False))
    assert codes.codes.dtype == torch.uint8
    assert int(codes.codes.max()) <= 15
    assert torch.equal(codes.scales, codes.scales.half().float())
    assert not codes.values()[:, :32].any()
