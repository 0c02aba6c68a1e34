"""Round to nearest: the scale and zero point of every group by search, then each weight by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.errors import StepFailed
from quantize.numerics.grids import LARGEST_SCALE, Codes, Grid, steps, stored_scale

if TYPE_CHECKING:
    import torch

#: raised whenever the same weights give other codes, as steps of jobs are done again then
VERSION = 2
#: by bits, scales tried for a group, from the one that clips nothing to a share of the one that spans the
#: extremes; then those halfway to the neighbours of the best, which is as good as twice as many
POINTS = {2: 12, 3: 12, 4: 12, 8: 24}
NARROWEST = {2: 0.4, 3: 0.4, 4: 0.5, 8: 0.8}
#: least-squares steps that start from the best of these
REFINEMENTS = 2
#: weights searched at a time, to bound memory
CHUNK = 1 << 22


@dataclass(frozen=True)
class Tried:
    """``factors`` of the scale of a group's extremes, in the order in which they are tried, negative ones for
    symmetric grids only; then the best, larger and smaller by ``half``, where that is not 0. Several are
    followed by ``REFINEMENTS``, one is taken."""

    factors: tuple[float, ...]
    half: float = 0.0


#: (weight (o, i), shares (i,), grid, what to try) -> scales and zero points (o, g), as of ``torch_search``
Search = Callable[["torch.Tensor", "torch.Tensor", Grid, Tried], "tuple[torch.Tensor, torch.Tensor]"]


def round_to_nearest(
    weight: "torch.Tensor",
    grid: Grid,
    importance: "torch.Tensor | None" = None,
    points: int | None = None,
    search: "Search | None" = None,
) -> Codes:
    """``weight`` (o, i) float on the grid that ``find_grid`` gives, each weight to the nearest code."""
    scales, zeros = find_grid(weight, grid, importance, points, search)
    return codes_on(weight, grid, scales, zeros)


def codes_on(weight: "torch.Tensor", grid: Grid, scales: "torch.Tensor", zeros: "torch.Tensor") -> Codes:
    """The nearest codes of ``weight`` (o, i) under given ``scales`` and ``zeros`` (o, g)."""
    import torch

    zero = zeros[..., None].to(weight.dtype)
    grouped = weight.unflatten(1, (scales.shape[1], -1))
    whole = steps(grouped, 1 / scales[..., None].to(weight.dtype), -zero, grid.top - zero)
    return Codes((whole + zero).flatten(1).to(torch.uint8), scales.to(torch.float32), zeros)


def find_grid(
    weight: "torch.Tensor",
    grid: Grid,
    importance: "torch.Tensor | None" = None,
    points: int | None = None,
    search: "Search | None" = None,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales (o, g) float32 that ``grid.scales`` holds, and zero points (o, g) int32, for ``weight`` (o, i).

    ``points`` 1: from the extremes of each group (0 among them). More (None: ``POINTS``): that many scales,
    in equal steps from the one that clips nothing to a share of the extremes' (``NARROWEST``), and for
    symmetric grids their negatives; the best of them, half a step larger and smaller; then ``REFINEMENTS``
    steps of least squares for the scale with the codes held fixed. The least sum of
    importance * (weight - value)**2 wins, where values are those of the scale as float16 holds it. For
    bfloat16 the winner is rounded.
    ``importance`` (i,), not negative; None: ones. ``search`` does it; None: ``torch_search``.

    Errors: StepFailed where a weight is not finite, or so large that float16 holds no scale for it;
    ValueError where groups do not divide the inputs.
    """
    import torch

    inputs = weight.shape[1]
    grid.columns(inputs)
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not largest < float("inf"):
        raise StepFailed("the weights hold NaN or Inf: they cannot be quantized; check the checkpoint")
    if largest > LARGEST_SCALE * grid.top / 2:
        raise StepFailed(
            f"a weight of {largest:.4g} needs a scale above {LARGEST_SCALE:.0f}, the largest number of "
            "float16, in which the format stores scales: leave this matrix unquantized"
        )
    shares = torch.ones(inputs) if importance is None else importance
    shares = shares.to(weight.device, weight.dtype)
    scales, zeros = (search or torch_search)(weight, shares, grid, tried(grid, points))
    scales = scales.to(torch.float32)
    return scales if grid.scales == "float16" else stored_scale(scales, grid.scales), zeros.to(torch.int32)


def tried(grid: Grid, points: int | None = None) -> Tried:
    """See ``find_grid``."""
    points = points or POINTS[grid.bits]
    if points == 1:
        return Tried((1.0,))
    widest = grid.top / 2 / (grid.middle - 1) if grid.symmetric else grid.top / (grid.top - 1)
    step = (widest - NARROWEST[grid.bits]) / (points - 1)
    signs = (1, -1) if grid.symmetric and not grid.positive else (1,)
    sizes = (widest - step * number for number in range(points))
    return Tried(tuple(sign * size for size in sizes for sign in signs), step / 2)


def torch_search(
    weight: "torch.Tensor", shares: "torch.Tensor", grid: Grid, tried: Tried
) -> "tuple[torch.Tensor, torch.Tensor]":
    """See ``find_grid``."""
    import torch

    outputs, inputs = weight.shape
    size = grid.columns(inputs)
    scales = torch.empty(outputs, inputs // size, dtype=weight.dtype, device=weight.device)
    zeros = torch.empty_like(scales)
    rows = max(1, CHUNK // max(1, inputs))
    shares = shares.reshape(-1, size)
    for start in range(0, outputs, rows):
        part = slice(start, start + rows)
        scales[part], zeros[part] = _search(weight[part].unflatten(1, (-1, size)), shares, grid, tried)
    return scales, zeros


def _search(
    groups: "torch.Tensor", shares: "torch.Tensor", grid: Grid, tried: Tried
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales and zero points (o, g) for ``groups`` (o, g, size), errors weighted by ``shares`` (g, size)."""
    import torch

    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if grid.symmetric:
        extremes = torch.maximum(-low, high) * 2 / grid.top
    else:
        extremes = torch.maximum((high - low) / grid.top, high / (grid.top - grid.lowest_zero))
    middle = torch.full_like(extremes, grid.middle)

    def zero_points(scale: "torch.Tensor", factor: "torch.Tensor") -> "torch.Tensor":
        if grid.symmetric:
            return middle
        return (-low * factor / scale).round_().clamp_(grid.lowest_zero, grid.top)

    def nearest(scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        return steps(groups, 1 / scale[..., None], -zero[..., None], grid.top - zero[..., None])

    def error_of(scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        return nearest(scale, zero).mul_(-scale[..., None]).add_(groups).square_().mul_(shares).sum(-1)

    factor, best = torch.ones_like(extremes), stored_scale(extremes)
    zero, least = zero_points(best, factor), torch.full_like(best, torch.inf)

    def attempt(candidate: "torch.Tensor") -> None:
        nonlocal factor, best, zero, least
        scale = stored_scale(extremes * candidate)
        middles = zero_points(scale, candidate)
        error = error_of(scale, middles)
        better = error < least
        least, factor = torch.where(better, error, least), torch.where(better, candidate, factor)
        best, zero = torch.where(better, scale, best), torch.where(better, middles, zero)

    for each in tried.factors:
        attempt(torch.full_like(extremes, each))
    if tried.half:
        found = factor
        for half in (tried.half, -tried.half):
            attempt(found + torch.copysign(torch.full_like(found, half), found * half))
    for _ in range(REFINEMENTS if len(tried.factors) > 1 else 0):
        whole = nearest(best, zero)
        weighted = whole * shares
        squares = (weighted * whole).sum(-1)
        scale = (weighted * groups).sum(-1) / torch.where(squares > 0, squares, 1)
        scale = stored_scale(torch.where(squares > 0, scale, best))
        error = error_of(scale, zero)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return best, zero
