"""What rounding changes, compiled for ``quantize.numerics.awq``, where it was built."""

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from quantize.kernels import native
from quantize.kernels.grid import search_arguments
from quantize.kernels.threads import over_rows
from quantize.numerics.awq import Change, ColumnErrors, torch_change, torch_column_errors
from quantize.numerics.grids import Grid
from quantize.numerics.rtn import Tried

if TYPE_CHECKING:
    import torch


def column_errors() -> ColumnErrors:
    """The compiled sums, or torch's where there are none: ``column_errors`` of ``search_scales``.

    They are torch's but for the order in which rows are added. What is not float32 on the CPU goes to torch
    in any case. Errors: BadInput as of ``native.load``.
    """
    library = _library()
    return _compiled_errors(library) if library else torch_column_errors


@cache
def _compiled_errors(library: native.Library) -> ColumnErrors:
    import torch

    def errors(weight: "torch.Tensor", scales: "torch.Tensor", grid: Grid) -> "torch.Tensor":
        if not _fits(weight, scales):
            return torch_column_errors(weight, scales, grid)
        held = [each.contiguous() for each in (weight, scales)]
        (rows, inputs), asked = weight.shape, search_arguments(grid, Tried(()))
        sums = torch.empty_like(held[1])
        pointers = [each.data_ptr() for each in (*held, sums)]

        def part(first: int, last: int) -> None:
            library.functions.quantwright_scaled(
                library.which,
                ctypes.addressof(asked),
                rows,
                inputs,
                grid.columns(inputs),
                first,
                last,
                *pointers,
            )

        over_rows(part, len(scales), 1)
        return sums

    return errors


def rounding_change() -> Change:
    """The compiled change, or torch's where there is none: ``change`` of ``clip``. Both are equal bit by bit.
    Errors: BadInput as of ``native.load``."""
    library = _library()
    return _compiled_change(library) if library else torch_change


@cache
def _compiled_change(library: native.Library) -> Change:
    import torch

    def change(
        values: "torch.Tensor", step: "torch.Tensor", zero: "torch.Tensor", top: float
    ) -> "torch.Tensor":
        if not _fits(values, step, zero):
            return torch_change(values, step, zero, top)
        held = [each.contiguous() for each in (values, step, zero)]
        out = torch.empty_like(held[0])
        pointers = [each.data_ptr() for each in (*held, out)]
        size = values.shape[-1]

        def part(first: int, last: int) -> None:
            library.functions.quantwright_change(library.which, size, first, last, top, *pointers)

        over_rows(part, values.numel() // size, 64)
        return out

    return change


def _library() -> native.Library | None:
    library = native.load()
    return None if isinstance(library, str) or not library.scales_columns else library


def _fits(*given: "torch.Tensor") -> bool:
    import torch

    return all(each.dtype == torch.float32 and each.device.type == "cpu" for each in given)
