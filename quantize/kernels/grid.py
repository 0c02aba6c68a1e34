"""The compiled search of scales and zero points (``quantize.numerics.rtn``), where it was built."""

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from quantize.kernels import native
from quantize.kernels.threads import over_rows
from quantize.numerics.grids import Grid
from quantize.numerics.rtn import REFINEMENTS, Search, Tried, torch_search

if TYPE_CHECKING:
    import torch


class SearchArguments(ctypes.Structure):
    """Search of quantwright.h."""

    _fields_ = (
        ("symmetric", ctypes.c_int), ("refinements", ctypes.c_int), ("top", ctypes.c_float),
        ("middle", ctypes.c_float), ("lowest_zero", ctypes.c_float), ("half", ctypes.c_float),
        ("count", ctypes.c_int64), ("factors", ctypes.POINTER(ctypes.c_float)),
    )  # fmt: skip


def search_arguments(grid: Grid, tried: Tried) -> SearchArguments:
    count = len(tried.factors)
    return SearchArguments(
        grid.symmetric, REFINEMENTS, grid.top, grid.middle, grid.lowest_zero, tried.half, count,
        (ctypes.c_float * count)(*tried.factors),
    )  # fmt: skip


def grid_search() -> Search:
    """The compiled search, or torch's where there is none: ``search`` of ``quantize.numerics.rtn.find_grid``.

    What it finds is torch's but for the rounding of sums, where two scales are equally good. What is not
    float32 on the CPU goes to torch in any case. Errors: BadInput as of ``native.load``.
    """
    library = native.load()
    return torch_search if isinstance(library, str) else _compiled(library)


@cache
def _compiled(library: native.Library) -> Search:
    import torch

    def search(
        weight: "torch.Tensor", shares: "torch.Tensor", grid: Grid, tried: Tried
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or len(tried.factors) == 1:
            return torch_search(weight, shares, grid, tried)
        outputs, inputs = weight.shape
        size = grid.columns(inputs)
        held = (weight.contiguous(), shares.to(torch.float32).contiguous())
        asked = search_arguments(grid, tried)
        found = torch.empty(outputs, inputs // size), torch.empty(outputs, inputs // size)
        pointers = [each.data_ptr() for each in (*held, *found)]

        def part(first: int, last: int) -> None:
            library.functions.quantwright_grid(
                library.which, ctypes.addressof(asked), inputs, size, first, last, *pointers
            )

        over_rows(part, outputs, 16)
        return found

    return search
