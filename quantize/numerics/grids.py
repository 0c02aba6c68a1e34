"""The integer grids that GPTQ, AWQ and plain rounding share: groups of consecutive inputs with one scale in
half precision and one zero point each, and the codes chosen on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

#: the smallest and the largest scale that float16 holds: its first subnormal number and its last finite one
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 65504.0


@dataclass(frozen=True)
class Grid:
    """Codes 0 .. 2**bits - 1 that mean scale * (code - zero).

    ``group_size`` consecutive inputs of a row share a scale and a zero point; -1: the whole row does.
    ``symmetric``: the zero point is 2**(bits - 1), and a scale may be negative, which puts the one level more
    of negative values on the other side. Else each group has its own zero point, ``lowest_zero`` or more (1
    for a file that cannot express 0), and scales are positive. ``scales``: what the file holds them in;
    bfloat16 holds those of float16 rounded. ``positive``: no scale is negative, where kernels may expect
    that.
    """

    bits: int
    group_size: int
    symmetric: bool
    lowest_zero: int = 0
    scales: Literal["float16", "bfloat16"] = "float16"
    positive: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric groups."""
        return 1 << (self.bits - 1)

    def columns(self, inputs: int) -> int:
        """Inputs to a group. Errors: ValueError where groups do not divide the ``inputs``."""
        size = self.group_size if self.group_size > 0 else inputs
        if inputs % size:
            raise ValueError(f"groups of {size} do not divide {inputs} inputs")
        return size


@dataclass(frozen=True)
class Codes:
    """A quantized matrix: ``codes`` (o, i) uint8, ``scales`` (o, g) float32 that ``Grid.scales`` holds
    exactly, ``zeros`` (o, g) int32."""

    codes: "torch.Tensor"
    scales: "torch.Tensor"
    zeros: "torch.Tensor"

    def values(self) -> "torch.Tensor":
        """(o, i) float32, scale * (code - zero): what a reader of the file computes in float32, bit by
        bit."""
        import torch

        groups = self.scales.shape[1]
        steps = self.codes.to(torch.int32).unflatten(1, (groups, -1)) - self.zeros[..., None]
        return (steps.to(torch.float32) * self.scales[..., None]).flatten(1)


def stored_scale(scale: "torch.Tensor", held_in: str = "float16") -> "torch.Tensor":
    """``scale`` rounded to float16 (to nearest even), in its own dtype; what would become 0 is the smallest
    number of float16 and what would become infinite the largest, with its sign, so that a code always means
    something. ``held_in`` bfloat16: rounded to that afterwards."""
    import torch

    held = scale.abs().clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)
    if held_in == "bfloat16":
        held = held.to(torch.bfloat16)
    return held.to(scale.dtype).copysign(scale)


def steps(
    values: "torch.Tensor", inverse: "torch.Tensor", low: "torch.Tensor", high: "torch.Tensor"
) -> "torch.Tensor":
    """Whole numbers (code - zero) nearest to ``values`` / scale, as floats: round(values * ``inverse``),
    half to even, within ``low`` .. ``high``; all broadcast against each other. The one place that says how
    a value becomes a code."""
    return (values * inverse).round_().clamp_(low, high)
