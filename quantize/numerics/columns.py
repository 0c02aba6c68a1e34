"""Columns of a matrix rounded one after the other, the error of each carried to those that follow: the loop
of GPTQ and of coordinate descent alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: columns between which errors are carried one by one; to later ones they go in one product
BLOCK = 128


@dataclass(frozen=True)
class Levels:
    """Where values may lie, outputs last: ``scale`` (g, o), the steps from ``low`` to ``high`` (g, o) of it,
    all in the dtype of the arithmetic; ``groups`` (i,) int64: the group of each column."""

    scale: "torch.Tensor"
    low: "torch.Tensor"
    high: "torch.Tensor"
    groups: "torch.Tensor"

    def values(self, whole: "torch.Tensor") -> "torch.Tensor":
        """(i, o) values of ``whole`` steps (i, o)."""
        return whole * self.scale[self.groups]


#: (wanted (b, o), before (b, o), factor (b, b), levels, groups (b,)) -> (whole, carried) (b, o): the columns
#: of one block as ``torch_block`` rounds them. ``wanted`` is overwritten: what each column was rounded from.
Block = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor", Levels, "torch.Tensor"],
    "tuple[torch.Tensor, torch.Tensor]",
]


def torch_block(
    wanted: "torch.Tensor",
    before: "torch.Tensor",
    factor: "torch.Tensor",
    levels: Levels,
    groups: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """See ``Block`` and ``visit``."""
    import torch

    whole, carried = torch.empty_like(wanted), torch.empty_like(wanted)
    inverse = 1 / levels.scale
    for column, group in enumerate(groups.tolist()):
        torch.mul(wanted[column], inverse[group], out=whole[column])
        whole[column].round_().clamp_(levels.low[group], levels.high[group])
        torch.sub(before[column], whole[column] * levels.scale[group], out=carried[column])
        wanted[column + 1 :].addr_(factor[column, column + 1 :], carried[column])
    return whole, carried


def visit(
    wanted: "torch.Tensor",
    before: "torch.Tensor",
    factor: "torch.Tensor",
    levels: Levels,
    *,
    block: int = BLOCK,
    run: Block = torch_block,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rounds ``wanted`` (i, o) row by row, each to the nearest of ``levels`` (round(wanted / scale), half to
    even, with the reciprocal of the scale): row j to q_j, and from then on each later row k is
    factor[j, k] * (before_j - q_j) higher. ``factor`` (i, i): what is above its diagonal counts.

    Returns the steps of q (i, o), and what each row was rounded from (i, o). ``block`` changes no more than
    the order of additions; ``run`` rounds the rows of one block.
    """
    import torch

    whole, carried, reached = (torch.empty_like(wanted) for _ in range(3))
    for start in range(0, len(wanted), block):
        part = slice(start, min(start + block, len(wanted)))
        reached[part] = torch.addmm(wanted[part], factor[:start, part].T, carried[:start])
        whole[part], carried[part] = run(
            reached[part], before[part], factor[part, part], levels, levels.groups[part]
        )
    return whole, reached
