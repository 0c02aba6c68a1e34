"""The bound that each group of weights is clamped to before it is rounded, searched as AWQ does."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: activations that the search looks at, and its grid: GPTQModel's own numbers
TOKENS, GRID, MOST = 512, 20, 0.5


def best_clip(
    weight: "torch.Tensor",
    inputs: "torch.Tensor",
    group_size: int,
    round_into: "Callable[[torch.Tensor, torch.Tensor], object]",
) -> "torch.Tensor":
    """The bound (out, groups, 1) that each group of each row is clamped to before rounding, for the least
    error of its products.

    ``weight`` (out, in); ``inputs`` (..., in), of which every nth row is used so that 512 to 1023 remain;
    ``round_into(source, target)`` quantizes and dequantizes groups along the last axis. Bounds tried: the
    group's largest magnitude times 1, 0.95, ... 0.55. The mean squared error of x . (rounded - w) over the
    rows x is the quadratic form of the difference with the second moments of x, (group, group) per group: the
    same numbers as multiplying every row by every candidate, at a fraction of the work and memory. Source:
    GPTQModel 7.6, AWQProcessor._compute_best_clip; AWQ, Lin et al. 2023.
    """
    import torch

    outputs, width = weight.shape
    size = group_size if group_size > 0 else width
    rows = inputs.reshape(-1, width)
    rows = rows[:: max(1, len(rows) // TOKENS)].to(weight.device, torch.float32)
    grouped = rows.reshape(len(rows), -1, size).transpose(0, 1)
    moments = grouped.transpose(1, 2) @ grouped / len(rows)  # (groups, size, size)
    values = weight.detach().reshape(outputs, -1, size)
    largest = values.abs().amax(dim=-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
    clamped, rounded = torch.empty_like(values), torch.empty_like(values)
    for step in range(int(MOST * GRID)):
        bound = largest * (1 - step / GRID)
        torch.clamp(values, -bound, bound, out=clamped)
        round_into(clamped, rounded)
        difference = (rounded - values).to(torch.float32).transpose(0, 1)  # (groups, out, size)
        error = ((difference @ moments) * difference).sum(-1).T[..., None]
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, bound, best)
    return best
