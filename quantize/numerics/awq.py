"""AWQ's two searches: a scale for each input of the linear layers that share it, so that rounding them costs
least, and then the range of each group of weights.

A weight w_c is rounded as w_c s_c and used as w_c s_c / s_c: a column with a large s_c has a smaller error,
and takes more of the range that its group of weights is divided into. Errors of rounding are as good as
independent of one another, so that what they do to the outputs is, summed over the rows of a matrix, the sum
of their squares times the mean squares of the inputs: any number of tokens costs the same, and each group of
columns can choose by itself. Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978, section 3.2; the
candidates that the weights' own magnitudes go into are those of llm-awq's "duo scaling". One exponent for all
groups is theirs, one for each ours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantize.numerics.grids import Codes, Grid, steps, stored_scale

if TYPE_CHECKING:
    import torch

#: weights (o, i), scales of their columns (k, i) -> (k, i): over all rows, the squares of what rounding
#: changes of the scaled weights, with the grid's scale of each group's extremes
ColumnErrors = Callable[["torch.Tensor", "torch.Tensor", Grid], "torch.Tensor"]

#: weights (..., i), scales and zero points (..., 1), the largest code -> what rounding adds to each weight
Change = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", float], "torch.Tensor"]

#: exponents of the inputs' magnitudes, and of the weights', that are tried
INPUT_EXPONENTS = tuple(step / 10 for step in range(1, 11))
WEIGHT_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: rows of all matrices together that candidates are tried on: the error is a sum over rows that are alike
ROWS = 2048
#: all candidates are tried on an eighth of them, and then so many of each group on the others too
SECOND = 8
#: weights that are rounded at once: what fits a processor's cache
CHUNK = 1 << 16
#: ranges tried for a group: shares of the one that its extremes span, in equal steps
WIDEST, NARROWEST, POINTS = 1.06, 0.485, 24
#: least-squares steps that start from the best of these
REFINEMENTS = 2
#: scales lie between the inverse of this and this, their mean logarithm over each group is 0
MOST = 1e3


@dataclass(frozen=True)
class Sharing:
    """A matrix (o, i) of those that share scales, and the sums (i,) of squares of its inputs."""

    weight: "torch.Tensor"
    squares: "torch.Tensor"


@dataclass(frozen=True)
class Scales:
    """``values`` (i,) float32: what columns are multiplied by before they are rounded; one where nothing is
    better. ``error`` and ``plain``: of the outputs, squared and summed, with them and without."""

    values: "torch.Tensor"
    error: float
    plain: float


def torch_column_errors(weight: "torch.Tensor", scales: "torch.Tensor", grid: Grid) -> "torch.Tensor":
    """``ColumnErrors`` on any device."""
    import torch

    size = grid.columns(weight.shape[1])
    sums = torch.zeros(len(scales), weight.shape[1] // size, size, device=weight.device)
    for sum_, each in zip(sums, scales, strict=True):
        for part in weight.split(max(1, CHUNK // weight.shape[1])):
            scaled = (part * each).unflatten(1, (-1, size))
            low, high = scaled.aminmax(dim=2, keepdim=True)
            low, high = low.clamp_max_(0), high.clamp_min_(0)
            if grid.symmetric:
                step = stored_scale(torch.maximum(-low, high) * 2 / grid.top)
                zero = torch.full_like(step, grid.middle)
            else:
                step = stored_scale((high - low) / grid.top)
                zero = (-low / step).round_().clamp_(grid.lowest_zero, grid.top)
            whole = steps(scaled, 1 / step, -zero, grid.top - zero)
            sum_ += whole.mul_(step).sub_(scaled).square_().sum(0)
    return sums.flatten(1)


def search_scales(
    matrices: Sequence[Sharing],
    grid: Grid,
    origin: "torch.Tensor | None" = None,
    rows: int = ROWS,
    column_errors: ColumnErrors = torch_column_errors,
) -> Scales:
    """The best candidate of each group of columns (of all groups that ``origin`` ties together).

    ``origin`` (i,) int64: columns with one number get one scale; None: each its own. At most ``rows`` rows
    (but 8 of each matrix), evenly spread, are looked at. Candidates: rms(x)^a / |w|^b, where |w| is the mean
    magnitude of a column relative to the largest of its group. Arithmetic in float32.
    """
    import torch

    width = matrices[0].weight.shape[1]
    size = grid.columns(width)
    groups = _tied_groups(origin, width, size, matrices[0].weight.device)
    share = rows / sum(len(each.weight) for each in matrices)
    first, looked = ([_thinned(each, part) for each in matrices] for part in (share / 8, share))
    inputs = torch.stack([each.squares for each in matrices]).sum(0).sqrt().to(torch.float32)
    relative = torch.stack([_relative(each.weight, size).sum(0) for each in looked]).sum(0)

    def errors(scales: "torch.Tensor", some: "Sequence[Sharing]") -> "torch.Tensor":
        """(k, g) of scales (k, i)."""
        total = torch.zeros(len(scales), width // size, device=scales.device)
        for each in some:
            weighted = column_errors(each.weight, scales, grid) * (each.squares / scales.square())
            total += weighted.to(scales.dtype).unflatten(1, (-1, size)).sum(2)
        return _together(total, groups)

    candidates = torch.stack(list(_candidates(inputs, relative, origin, size, groups)))
    order = errors(candidates, first).argsort(dim=0, stable=True)
    plain = torch.ones(1, width, device=inputs.device)
    second = torch.cat([plain, candidates.gather(0, order[:SECOND].repeat_interleave(size, 1))])
    found = errors(second, looked)
    choice = found.argsort(dim=0, stable=True)[:1]
    least, best = found.gather(0, choice)[0], second.gather(0, choice.repeat_interleave(size, 1))[0]
    count = torch.bincount(groups, minlength=len(groups))[groups]
    return Scales(best, float((least / count).sum()), float((found[0] / count).sum()))


def torch_change(
    values: "torch.Tensor", step: "torch.Tensor", zero: "torch.Tensor", top: float
) -> "torch.Tensor":
    """``Change`` on any device."""
    return _rounded(values, step, zero, top).mul_(step).sub_(values)


def clip(weight: "torch.Tensor", blocks: "torch.Tensor", grid: Grid, change: Change = torch_change) -> Codes:
    """Codes of ``weight`` (o, i) on the range of each group of each row that makes d M d^T least, d what
    rounding changes and M the group's ``blocks`` (g, size, size), X^T X of its inputs, to any scale.

    ``POINTS`` shares of the range that the extremes span, then ``REFINEMENTS`` steps of least squares for the
    scale with the codes held fixed. Rounded to nearest; scales are those that the file holds. Source: AWQ
    section 5.1 and llm-awq, ``auto_clip``, which look at 512 tokens and clip only.
    """
    import torch

    parts = [
        _clipped(part, blocks, grid, change) for part in weight.split(max(1, 4 * CHUNK // weight.shape[1]))
    ]
    codes, scales, zeros = (torch.cat(each) for each in zip(*parts, strict=True))
    return Codes(codes, scales, zeros)


def _clipped(
    weight: "torch.Tensor", blocks: "torch.Tensor", grid: Grid, change: Change
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """(codes (o, i), scales (o, g), zeros (o, g)); groups come first in between."""
    import torch

    values = weight.unflatten(1, (-1, blocks.shape[1])).transpose(0, 1).contiguous()  # (g, o, size)
    low, high = values.aminmax(dim=2, keepdim=True)
    low, high = low.clamp_max(0), high.clamp_min(0)
    extremes = torch.maximum(-low, high) * 2 if grid.symmetric else high - low
    best = torch.full_like(extremes, torch.inf), extremes, low

    def tried(step: "torch.Tensor", zero: "torch.Tensor", best: Any) -> Any:
        step = stored_scale(step, grid.scales)
        added = change(values, step, zero, grid.top)
        found = torch.bmm(added, blocks).mul_(added).sum(2, keepdim=True), step, zero
        better = found[0] < best[0]
        return tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))

    for point in range(POINTS):
        share = WIDEST + (NARROWEST - WIDEST) * point / (POINTS - 1)
        step = stored_scale(extremes * (share / grid.top))
        if grid.symmetric:
            zero = torch.full_like(step, grid.middle)
        else:
            zero = (-low * share / step).round_().clamp_(grid.lowest_zero, grid.top)
        best = tried(step, zero, best)
    for _ in range(REFINEMENTS):
        _, step, zero = best
        whole = _rounded(values, step, zero, grid.top)
        weighted = torch.bmm(whole, blocks)
        squares = (weighted * whole).sum(2, keepdim=True)
        fitted = (weighted * values).sum(2, keepdim=True) / torch.where(squares > 0, squares, 1)
        best = tried(torch.where((squares > 0) & (fitted > 0), fitted, step), zero, best)
    _, step, zero = best
    codes = (_rounded(values, step, zero, grid.top) + zero).to(torch.uint8).transpose(0, 1).flatten(1)
    return codes, step[..., 0].T.contiguous(), zero[..., 0].T.to(torch.int32).contiguous()


def _rounded(
    values: "torch.Tensor", step: "torch.Tensor", zero: "torch.Tensor", top: float
) -> "torch.Tensor":
    return steps(values, 1 / step, -zero, top - zero)


def _thinned(each: Sharing, share: float) -> Sharing:
    """Some rows, evenly spread, for all; squares are made up for by their number."""
    import torch

    count = min(len(each.weight), max(8, round(share * len(each.weight))))
    chosen = torch.linspace(0, len(each.weight) - 1, count, device=each.weight.device).round().long()
    return Sharing(each.weight[chosen].to(torch.float32), each.squares * (len(each.weight) / count))


def _relative(weight: "torch.Tensor", size: int) -> "torch.Tensor":
    """(o, i): magnitudes as shares of the largest of their group."""
    grouped = weight.abs().unflatten(1, (-1, size))
    return (grouped / grouped.amax(2, keepdim=True).clamp_min(1e-12)).flatten(1)


def _candidates(
    inputs: "torch.Tensor",
    weights: "torch.Tensor",
    origin: "torch.Tensor | None",
    size: int,
    groups: "torch.Tensor",
) -> "Iterator[torch.Tensor]":
    """Logarithms are averaged over columns of one origin, and over groups that are tied together made 0."""
    import torch

    usable = (inputs > 0) & (weights > 0)
    large = torch.where(usable, inputs, 1).log()
    heavy = torch.where(usable, weights / weights.max().clamp_min(1e-12), 1).clamp_min(1e-6).log()
    large, heavy = (_shared(torch.where(usable, each, 0.0), origin) for each in (large, heavy))
    for one in INPUT_EXPONENTS:
        for other in WEIGHT_EXPONENTS:
            logs = one * large - other * heavy
            means = _together(logs.unflatten(0, (-1, size)).mean(1), groups)
            means = means / torch.bincount(groups, minlength=len(groups))[groups]
            scales = (logs - means.repeat_interleave(size)).exp().clamp(1 / MOST, MOST)
            yield scales


def _shared(values: "torch.Tensor", origin: "torch.Tensor | None") -> "torch.Tensor":
    """The mean of ``values`` (i,) over the columns of one origin."""
    import torch

    if origin is None:
        return values
    count = int(origin.max()) + 1
    sums = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, origin, values)
    return (sums / torch.bincount(origin, minlength=count).clamp_min(1))[origin]


def _tied_groups(
    origin: "torch.Tensor | None", width: int, size: int, device: "torch.device"
) -> "torch.Tensor":
    """(g,) int64: groups of columns that share an origin, directly or through others, have one number."""
    import torch

    groups = torch.arange(width // size, device=device)
    if origin is None or len(torch.unique(origin)) == width:
        return groups
    of_column = groups.repeat_interleave(size)
    while True:
        largest = len(groups)
        by_origin = torch.full((int(origin.max()) + 1,), largest, device=device)
        by_origin.scatter_reduce_(0, origin, groups[of_column], "amin")
        new = torch.full_like(groups, largest).scatter_reduce_(0, of_column, by_origin[origin], "amin")
        if torch.equal(new, groups):
            return groups
        groups = new


def _together(values: "torch.Tensor", groups: "torch.Tensor") -> "torch.Tensor":
    """(..., g): the sum of ``values`` (..., g) over all groups of one number."""
    import torch

    return torch.zeros_like(values).index_add_(-1, groups, values)[..., groups]
