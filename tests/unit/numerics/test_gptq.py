"""GPTQ against the paper's own recursion, column by column on the inverse of the Hessian, in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.errors import StepFailed  # noqa: E402
from quantize.numerics.gptq import MOST_DAMPING, solve  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402
from quantize.numerics.rtn import round_to_nearest  # noqa: E402

GRIDS = [Grid(2, 16, False, 1), Grid(3, 32, True), Grid(4, -1, True), Grid(4, 16, False), Grid(8, 32, True)]


def problem(outputs: int, inputs: int, seed: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Heavy-tailed weights, and the second moments of correlated inputs of very different sizes: float64."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((inputs, inputs)) * np.exp(random.standard_normal(inputs))
    rows = random.standard_normal((3 * inputs, inputs)) @ mix
    weight = random.standard_t(4, (outputs, inputs)) * 0.05
    return torch.from_numpy(weight), torch.from_numpy(rows.T @ rows / len(rows))


def naive(
    weight: np.ndarray, hessian: np.ndarray, damping: float, order: str, grid: Grid, scales: np.ndarray,
    zeros: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Frantar et al. 2022, equations 2 and 3: round a column, spread its error over the columns that are
    left by the inverse of their Hessian, take it out of the inverse."""
    inputs = len(hessian)
    size = grid.columns(inputs)
    left = list(np.argsort(-np.diag(hessian), kind="stable") if order == "activation" else range(inputs))
    inverse = np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(inputs))
    work, codes = weight.copy(), np.empty(weight.shape, np.uint8)
    for column in list(left):
        scale, zero = scales[:, column // size], zeros[:, column // size]
        codes[:, column] = np.clip(np.round(work[:, column] / scale) + zero, 0, grid.top)
        error = work[:, column] - scale * (codes[:, column].astype(float) - zero)
        work -= np.outer(error, inverse[column] / inverse[column, column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("order", ["activation", "none"])
@pytest.mark.parametrize("block", [1, 24, 128])
def test_codes_are_those_of_the_naive_solver(grid: Grid, order: str, block: int) -> None:
    weight, hessian = problem(12, 96, grid.bits)
    solved = solve(weight, hessian, grid, order=order, damping=0.02, refinements=0, block=block)
    codes = solved.codes
    want = naive(
        weight.numpy(), hessian.numpy(), 0.02, order, grid, codes.scales.double().numpy(), codes.zeros.numpy()
    )
    np.testing.assert_array_equal(codes.codes.numpy(), want)
    damped = hessian + 0.02 * hessian.diagonal().mean() * torch.eye(96)
    error = codes.values().double() - weight
    assert solved.loss == pytest.approx(float((error @ damped * error).sum()), rel=1e-5)
    assert solved.damping_used == 0.02
    refined = solve(weight, hessian, grid, order=order, damping=0.02, block=block)
    error = refined.codes.values().double() - weight
    assert refined.loss == pytest.approx(float((error @ damped * error).sum()), rel=1e-5)
    assert refined.loss < solved.loss


@pytest.mark.parametrize("refinements", [0, 2])
def test_float32_gives_almost_the_same_codes(refinements: int) -> None:
    """A code that flips at a tie changes the rest of its row, so few may: 1e-4 of them all."""
    weight, hessian = problem(256, 256, 1)
    for grid in (Grid(4, 64, True), Grid(2, 64, False)):
        given = weight.float(), hessian.float()
        exact = solve(given[0].double(), given[1].double(), grid, refinements=refinements).codes.codes
        for block in (32, 128):
            rounded = solve(*given, grid, refinements=refinements, block=block).codes.codes
            assert int((rounded != exact).sum()) <= 1e-4 * exact.numel()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("order", ["activation", "none"])
def test_independent_inputs_make_it_rounding_to_nearest(grid: Grid, order: str) -> None:
    weight, _ = problem(12, 96, 2)
    weight = weight.float()
    solved = solve(weight, torch.eye(96) * 4, grid, order=order, damping=0, refinements=0).codes
    nearest = round_to_nearest(weight, grid)
    assert torch.equal(solved.codes, nearest.codes)
    assert torch.equal(solved.values(), nearest.values())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_products_come_out_nearer_than_by_rounding(grid: Grid) -> None:
    weight, hessian = problem(32, 96, 3)
    solved = solve(weight.float(), hessian.float(), grid, damping=0.01).codes.values().double() - weight
    nearest = round_to_nearest(weight.float(), grid, hessian.float().diagonal()).values().double() - weight
    assert float((solved @ hessian * solved).sum()) < 0.8 * float((nearest @ hessian * nearest).sum())


def test_columns_that_no_input_reaches_are_rounded_to_nearest() -> None:
    weight, hessian = problem(8, 64, 4)
    dead = [3, 40, 41]
    hessian[dead] = 0
    hessian[:, dead] = 0
    codes = solve(weight, hessian, Grid(4, 32, True), refinements=0).codes
    scale = codes.scales.double().repeat_interleave(32, 1)[:, dead]
    want = scale * torch.clamp(torch.round(weight[:, dead] / scale), -8, 7)
    np.testing.assert_allclose(codes.values().double()[:, dead].numpy(), want.numpy(), rtol=1e-12)


def test_inputs_of_one_direction_need_damping() -> None:
    """Rank one: without damping there is nothing to factor; it is raised, and said."""
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(32))
    weight, _ = problem(8, 32, 5)
    solved = solve(weight, torch.outer(direction, direction), Grid(4, 16, True), damping=0)
    assert 0 < solved.damping_used <= 0.02
    error = solved.codes.values().double() - weight
    nearest = round_to_nearest(weight, Grid(4, 16, True)).values().double() - weight
    assert (error @ direction).square().sum() < 0.1 * (nearest @ direction).square().sum()


def test_one_outlier_and_empty_rows() -> None:
    weight, hessian = problem(4, 64, 6)
    weight[0] = 0
    weight[1] = 1e-9
    weight[2, 5] = 4e4
    codes = solve(weight.float(), hessian.float(), Grid(4, 32, True)).codes
    values = codes.values()
    assert torch.isfinite(values).all()
    assert (values[0] == 0).all()
    assert values[1].abs().max() <= 8 * 2**-24
    assert float(values[2, 5]) == pytest.approx(4e4, rel=0.08)


def test_the_same_again() -> None:
    weight, hessian = problem(16, 64, 7)
    first, second = (solve(weight.float(), hessian.float(), Grid(3, 16, False)) for _ in range(2))
    assert torch.equal(first.codes.codes, second.codes.codes)
    assert first.loss == second.loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h * 0, "no calibration token reached"),
        (lambda h: h * float("nan"), "inputs of this matrix hold NaN or Inf"),
        (
            lambda h: h + 20 * h.diagonal().mean() * (torch.eye(32) - 1),
            f"not even with {MOST_DAMPING:g} of its mean diagonal",
        ),
    ],
)
def test_hessians_that_cannot_be(change: object, message: str) -> None:
    weight, hessian = problem(4, 32, 8)
    with pytest.raises(StepFailed, match=message):
        solve(weight, change(hessian), Grid(4, 16, True))  # type: ignore[operator]
