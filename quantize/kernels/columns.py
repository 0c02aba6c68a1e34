"""The compiled loop over the columns of a block (``quantize.numerics.columns``), where it was built."""

from functools import cache
from typing import TYPE_CHECKING

from quantize.kernels import native
from quantize.kernels.threads import over_rows
from quantize.numerics.columns import Block, Levels, torch_block

if TYPE_CHECKING:
    import torch

#: MOST_COLUMNS of quantwright.h
MOST_COLUMNS = 256
#: outputs that go to one thread at least: whole lines of memory, and enough work for the call
SLICE = 256


def column_block() -> Block:
    """The compiled loop, or torch's where there is none: ``run`` of ``quantize.numerics.gptq.solve``.

    Codes are torch's but for the rounding of sums (no fused multiply-add here). What is not float32 on the
    CPU, or a larger block, goes to torch in any case. Errors: BadInput as of ``native.load``.
    """
    library = native.load()
    return torch_block if isinstance(library, str) else _compiled(library)


def column_maker() -> str:
    """What rounds columns, for manifests."""
    library = native.load()
    return "torch" if isinstance(library, str) else f"quantwright ({native.IMPLEMENTATIONS[library.which]})"


@cache
def _compiled(library: native.Library) -> Block:
    import torch

    def run(
        wanted: "torch.Tensor",
        before: "torch.Tensor",
        factor: "torch.Tensor",
        levels: Levels,
        groups: "torch.Tensor",
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        columns, outputs = wanted.shape
        given = (wanted, before, levels.scale, levels.low, levels.high)
        fits = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in given)
        if not fits or columns > MOST_COLUMNS or not all(each.is_contiguous() for each in given):
            return torch_block(wanted, before, factor, levels, groups)
        whole, carried = torch.empty_like(wanted), torch.empty_like(wanted)
        shares, places = factor.T.contiguous(), groups.contiguous()
        held = (wanted, before, whole, carried, shares, *given[2:], places)
        pointers = [each.data_ptr() for each in held]

        def part(first: int, last: int) -> None:
            library.functions.quantwright_columns(library.which, columns, outputs, first, last, *pointers)

        over_rows(part, outputs, SLICE)
        return whole, carried

    return run
