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
from quantize.numerics.columns import BLOCK, Block, Levels, torch_block, visit
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.refine import refined
from quantize.numerics.rtn import Search, find_grid, torch_search

if TYPE_CHECKING:
    import torch

#: of the mean of the Hessian's diagonal, added to the diagonal
DAMPING = 0.05
#: damping is doubled until the Hessian can be factored, up to this
MOST_DAMPING = 1.0
#: rounds of ``quantize.numerics.refine`` after GPTQ proper
REFINEMENTS = 2


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
    points: int | None = None,
    refinements: int = REFINEMENTS,
    block: int = BLOCK,
    run: Block = torch_block,
    search: Search = torch_search,
) -> Solved:
    """Codes of ``weight`` (o, i), float32 or float64 (arithmetic is in its dtype), under ``hessian`` (i, i),
    the sum or mean of x^T x over the rows x that the matrix multiplies: its scale does not matter.

    ``order``: columns are visited as they stand, or from the largest diagonal element down; groups are those
    of the columns' places either way. Scales are searched (``points``, as ``find_grid``) with the weights D
    that the sum above gives each column, before any column is visited. ``damping`` >= 0 is doubled
    until the Hessian can be factored; the factor is float64. A column that no input reaches is rounded to
    nearest. ``refinements``: rounds of ``refine.refined`` that follow; 0 is GPTQ proper. ``block``, and who
    rounds it (``run``), change no code but for the order of additions, nor does who searches (``search``).

    Errors: StepFailed where the Hessian is not finite, is all zero (the matrix was never used) or cannot be
    factored, and where ``find_grid`` fails.
    """
    import torch

    places = _visited(hessian, order)
    factor, shares, damping_used = _factor(hessian[places][:, places], damping)
    importance = torch.empty_like(shares)
    importance[places] = shares
    scales, zeros = find_grid(weight, grid, importance, points, search)
    zero = zeros.T.to(weight.dtype).contiguous()
    levels = Levels(
        scales.T.to(weight.dtype).contiguous(), -zero, grid.top - zero, places // grid.columns(len(places))
    )
    factor = factor.to(weight.dtype)
    columns = weight[:, places].T.contiguous()
    whole, reached = visit(columns, columns, factor, levels, block=block, run=run)
    if refinements:
        damped = hessian.to(weight.dtype, copy=True)
        damped.diagonal().add_(damping_used * hessian.diagonal().mean())
        whole, levels = refined(
            weight, damped, places, whole, levels, refinements, block=block, run=run, held_in=grid.scales
        )
        errors = columns - levels.values(whole)
        loss = (((damped[places][:, places] @ errors) * errors).sum(0)).double().sum()
    else:
        loss = (shares.to(weight.dtype) @ (reached - levels.values(whole)).square_()).double().sum()
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, places] = (whole + zero[levels.groups]).T.to(torch.uint8)
    scales = levels.scale.T.to(torch.float32).contiguous()
    return Solved(Codes(codes, scales, zeros), float(loss), damping_used)


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
