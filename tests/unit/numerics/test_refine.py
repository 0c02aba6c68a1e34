"""Scales by least squares and codes by coordinate descent, against numpy's least squares and a descent that
computes the whole sum for every code it might take; float64."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.numerics.columns import Levels  # noqa: E402
from quantize.numerics.gptq import solve  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402
from quantize.numerics.refine import refit, sweep  # noqa: E402


def problem(outputs: int, inputs: int, seed: int) -> "tuple[torch.Tensor, torch.Tensor]":
    random = np.random.default_rng(seed)
    rows = random.standard_normal((2 * inputs, inputs)) @ random.standard_normal((inputs, inputs))
    weight = random.standard_t(4, (outputs, inputs)) * 0.05
    return torch.from_numpy(weight), torch.from_numpy(rows.T @ rows / len(rows))


def cost(weight: "torch.Tensor", hessian: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
    error = weight - values
    return ((error @ hessian) * error).sum(-1)


def test_scales_are_those_of_least_squares() -> None:
    weight, hessian = problem(6, 48, 0)
    codes = solve(weight, hessian, Grid(3, 16, True), refinements=0).codes
    whole = codes.codes.double() - 4
    whole[2, 16:32] = 0  # a group that is all zero keeps its scale
    found = refit(weight @ hessian, hessian, whole, codes.scales)
    root = np.linalg.cholesky(hessian.numpy()).T  # cost = |root (w - q)|^2
    for row in range(6):
        used = [group for group in range(3) if row != 2 or group != 1]
        design = np.stack(
            [root[:, g * 16 : g * 16 + 16] @ whole[row, g * 16 : g * 16 + 16].numpy() for g in used], 1
        )
        want = np.linalg.lstsq(design, root @ weight[row].numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[row, used].numpy(), want, rtol=2**-11 + 1e-5)
    assert found[2, 1] == codes.scales[2, 1]
    assert torch.equal(found, found.half().float())


@pytest.mark.parametrize("spoilt", [-1.0, 5.0])
def test_a_row_whose_scales_would_run_away_keeps_them(spoilt: float) -> None:
    weight, hessian = problem(4, 32, 1)
    codes = solve(weight, hessian, Grid(4, 16, True), refinements=0).codes
    whole = codes.codes.double() - 8
    scales = codes.scales.clone()
    scales[1, 0] *= spoilt
    found = refit(weight @ hessian, hessian, whole, scales)
    assert torch.equal(found[1], scales[1])
    assert not torch.equal(found[0], scales[0])


@pytest.mark.parametrize("block", [1, 7, 128])
def test_codes_are_those_of_coordinate_descent(block: int) -> None:
    weight, hessian = problem(5, 24, 2)
    solved = solve(weight, hessian, Grid(2, 8, False), order="none", refinements=0).codes
    scales, zeros = (part.double().repeat_interleave(8, 1).numpy() for part in (solved.scales, solved.zeros))
    codes = solved.codes.double().numpy()
    want = codes.copy()
    for row in range(5):
        for column in range(24):
            costs = []
            for code in range(4):
                want[row, column] = code
                value = torch.from_numpy(scales[row] * (want[row] - zeros[row]))
                costs.append(float(cost(weight[row], hessian, value)))
            want[row, column] = int(np.argmin(costs))
    zero = solved.zeros.T.double()
    levels = Levels(solved.scales.T.double(), -zero, 3 - zero, torch.arange(24) // 8)
    whole = torch.from_numpy(codes - zeros).T.contiguous()
    found = sweep(weight.T.contiguous(), hessian, whole, levels, block=block)
    np.testing.assert_array_equal(found.T.numpy() + zeros, want)
    assert (want != codes).any()


@pytest.mark.parametrize("grid", [Grid(2, 16, False, 1), Grid(2, 32, True), Grid(4, -1, True)], ids=str)
def test_every_round_comes_nearer(grid: Grid) -> None:
    """But for what rounding scales to float16 may cost, 1e-5 of a row's sum; on the whole by more."""
    weight, hessian = problem(24, 64, grid.bits)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    costs = []
    for rounds in range(4):
        codes = solve(weight, hessian, grid, damping=0.01, refinements=rounds).codes
        assert torch.equal(codes.scales, codes.scales.half().float())
        costs.append(cost(weight, damped, codes.values().double()))
    for before, after in pairwise(costs):
        assert (after <= before * (1 + 1e-5)).all()
    assert costs[-1].sum() < 0.95 * costs[0].sum()
