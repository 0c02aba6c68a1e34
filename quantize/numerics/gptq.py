"""GPTQ: codes chosen column by column, the error of each made good by the columns that follow.

For a row w and the second moments H of its inputs, GPTQ looks for codes whose values q make the error of the
products, (w - q) H (w - q)^T, small. With H = U D U^T, U upper triangular with ones on its diagonal, that is

    sum over columns j of  D_j * (w_j + sum over i < j of (w_i - q_i) U_ij - q_j)**2

so that rounding each bracket in turn, from the left, is GPTQ: the same codes as Frantar et al. get from the
inverse of H, here without inverting it. Source: GPTQ, Frantar et al. 2022 (arXiv 2210.17323); that the two
are one, Chee et al. 2023 (QuIP, arXiv 2307.13304, theorem 6).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantize.errors import StepFailed
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.rtn import POINTS, find_grid

if TYPE_CHECKING:
    import torch

#: of the mean of the Hessian's diagonal, added to the diagonal
DAMPING = 0.05
#: damping is doubled until the Hessian can be factored, up to this
MOST_DAMPING = 1.0
#: columns between which errors are carried one by one; to later ones they go in one product
BLOCK = 128


@dataclass(frozen=True)
class Solved:
    """``loss``: the sum over rows of (w - q) H (w - q)^T with H as damped; ``damping_used``: of the mean of
    the diagonal, above what was asked for where the Hessian could not be factored with that."""

    codes: Codes
    loss: float
    damping_used: float


def solve(
    weight: "torch.Tensor",
    hessian: "torch.Tensor",
    grid: Grid,
    *,
    order: Literal["activation", "none"] = "activation",
    damping: float = DAMPING,
    points: int = POINTS,
    block: int = BLOCK,
) -> Solved:
    """Codes of ``weight`` (o, i), float32 or float64 (arithmetic is in its dtype), under ``hessian`` (i, i),
    the sum or mean of x^T x over the rows x that the matrix multiplies: its scale does not matter.

    ``order``: columns are visited as they stand, or from the largest diagonal element down; groups are those
    of the columns' places either way. Scales are searched (``points``, as ``find_grid``) with the weights D
    that the sum above gives each column, before any column is visited. ``damping`` >= 0 is doubled
    until the Hessian can be factored. A column that no input reaches is rounded to nearest. The factor is
    float64; ``block`` changes no code but for the order of additions.

    Errors: StepFailed where the Hessian is not finite, is all zero (the matrix was never used) or cannot be
    factored, and where ``find_grid`` fails.
    """
    import torch

    places = _visited(hessian, order)
    factor, shares, damping_used = _factor(hessian[places][:, places], damping)
    importance = torch.empty_like(shares)
    importance[places] = shares
    scales, zeros = find_grid(weight, grid, importance, points)
    columns = weight[:, places].T.contiguous()
    whole, losses = visit(
        columns, factor, shares, scales, zeros, places // grid.columns(len(places)), grid, block
    )
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, places] = whole.T.to(torch.uint8)
    return Solved(Codes(codes, scales, zeros), float(losses.sum()), damping_used)


def visit(
    columns: "torch.Tensor",
    factor: "torch.Tensor",
    shares: "torch.Tensor",
    scales: "torch.Tensor",
    zeros: "torch.Tensor",
    groups: "torch.Tensor",
    grid: Grid,
    block: int,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Codes (i, o), as floats, and losses (o,) of ``columns`` (i, o), the weights in the order of visits.

    ``factor`` (i, i) and ``shares`` (i,): U and D of the module's text; ``scales`` and ``zeros`` (o, g), and
    the group of each column in ``groups`` (i,).
    """
    import torch

    dtype = columns.dtype
    factor = factor.to(dtype)
    scale, zero = scales.T.to(dtype).contiguous(), zeros.T.to(dtype).contiguous()
    inverse, low, high = 1 / scale, -zero, grid.top - zero
    errors, whole = torch.empty_like(columns), torch.empty_like(columns)
    losses = torch.zeros(columns.shape[1], dtype=torch.float64, device=columns.device)
    at = groups.tolist()
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        wanted = torch.addmm(columns[start:stop], factor[:start, start:stop].T, errors[:start])
        for column in range(start, stop):
            group, want = at[column], wanted[column - start]
            torch.mul(want, inverse[group], out=whole[column])
            whole[column].round_().clamp_(low[group], high[group])
            value = whole[column] * scale[group]
            want.sub_(value)
            torch.sub(columns[column], value, out=errors[column])
            wanted[column - start + 1 :].addr_(factor[column, column + 1 : stop], errors[column])
        losses += (wanted.square_() * shares[start:stop, None]).sum(0)
    return whole.add_(zero[groups]), losses


def _visited(hessian: "torch.Tensor", order: str) -> "torch.Tensor":
    """Columns (i,) in the order of visits; equal ones as they stand."""
    import torch

    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise StepFailed("the inputs of this matrix hold NaN or Inf: check the model and the compute dtype")
    if not float(diagonal.sum()) > 0:
        raise StepFailed("no calibration token reached this matrix: use more or other calibration text")
    if order == "activation":
        return torch.argsort(diagonal, descending=True, stable=True)
    return torch.arange(len(diagonal), device=hessian.device)


def _factor(hessian: "torch.Tensor", damping: float) -> "tuple[torch.Tensor, torch.Tensor, float]":
    """U (i, i) and D (i,) in float64 of the damped Hessian, and the damping that was needed."""
    import torch

    turned = hessian.to(torch.float64).flip(0, 1)
    mean = float(turned.diagonal().mean())
    while True:
        damped = turned.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            break
        if damping >= MOST_DAMPING:
            raise StepFailed(
                f"the Hessian of this matrix cannot be factored, not even with {damping:g} of its mean "
                "diagonal added: use more or other calibration text"
            )
        damping = min(MOST_DAMPING, max(2 * damping, 0.01))
    upper = lower.flip(0, 1)
    diagonal = upper.diagonal().clone()
    return upper / diagonal, diagonal.square(), damping
