"""Weights in floats of 8 and 4 bits: the scales of rows, blocks and groups, and the codes nearest under
them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from quantize.errors import StepFailed

if TYPE_CHECKING:
    import torch

#: the largest values of E4M3 and of E2M1
E4M3_MAX, E2M1_MAX = 448.0, 6.0
#: scales of E4M3 that are tried for a group: codes from this many below the one that clips nothing to this
#: many above it; eight of them double a scale, and one that puts the largest weight at 4 instead of 6 is five
#: above
FEWER, MORE = 5, 6
#: exponents that are tried beside the one of the OCP specification
STEPS = (-1, 0, 1)
#: weights searched at a time, to bound memory
CHUNK = 1 << 20

#: largest magnitudes (o, g) -> scales of that shape to try, one after the other
Candidates = Callable[["torch.Tensor"], "list[torch.Tensor]"]


@dataclass(frozen=True)
class FloatCodes:
    """A quantized matrix: ``codes`` (o, i) uint8, of E4M3 bits or of E2M1 ones; ``levels`` (o, i) float32,
    what they mean; ``scales`` (r, g) float32, each of ``block`` (rows, columns) of weights; ``whole``: what
    the file divides scales by, a power of two."""

    codes: "torch.Tensor"
    levels: "torch.Tensor"
    scales: "torch.Tensor"
    block: tuple[int, int]
    whole: float = 1.0

    def values(self) -> "torch.Tensor":
        """(o, i) float32, each rounded once: what a reader of the file computes."""
        outputs, inputs = self.codes.shape
        return self.levels * _spread(self.scales / self.whole, self.block, outputs, inputs)


def _spread(scales: "torch.Tensor", block: tuple[int, int], outputs: int, inputs: int) -> "torch.Tensor":
    rows, columns = block
    if rows == 1 and columns == inputs:
        return scales
    wide = scales.repeat_interleave(columns, 1)[:, :inputs]
    return wide if rows == 1 else wide.repeat_interleave(rows, 0)[:outputs]


def check_finite(weight: "torch.Tensor") -> None:
    """Errors: StepFailed where a weight is not finite."""
    if weight.numel() and not float(weight.abs().max()) < float("inf"):
        raise StepFailed("the weights hold NaN or Inf: they cannot be quantized; check the checkpoint")


def to_e4m3(weight: "torch.Tensor", block: tuple[int, int], dtype: "torch.dtype") -> FloatCodes:
    """``weight`` (o, i) float32 in E4M3, one scale for each ``block`` (rows, columns; the last may be cut
    off): the largest magnitude over 448, rounded to ``dtype``, which the file holds scales in. Codes are the
    nearest, half to even; beyond 448 they are 448. A block of zeros has a scale of 1. Errors: StepFailed
    where a weight is not finite."""
    import torch

    check_finite(weight)
    outputs, inputs = weight.shape
    rows, columns = block
    size = weight.abs()
    if block != (1, inputs):
        size = torch.nn.functional.pad(size, (0, -inputs % columns, 0, -outputs % rows))
    largest = size.unflatten(1, (-1, columns)).amax(2).unflatten(0, (-1, rows)).amax(1)
    smallest = torch.finfo(dtype).smallest_normal
    scales = (largest / E4M3_MAX).clamp_min(smallest).to(dtype).to(torch.float32)
    scales = torch.where(largest > 0, scales, 1.0)
    inside = (weight / _spread(scales, block, outputs, inputs)).clamp_(-E4M3_MAX, E4M3_MAX)
    codes = inside.to(torch.float8_e4m3fn)
    return FloatCodes(codes.view(torch.uint8), _levels(codes), scales, block)


def _levels(codes: "torch.Tensor") -> "torch.Tensor":
    """float32 of E4M3 ``codes``: by a table on a CPU, where torch takes them one by one."""
    import torch

    if codes.device.type != "cpu":
        return codes.to(torch.float32)
    return torch.from_numpy(np.take(_table(), codes.view(torch.uint8).numpy()))


@cache
def _table() -> np.ndarray:
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()


def nearest_e2m1(values: "torch.Tensor") -> "torch.Tensor":
    """The number of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) nearest to each of ``values``;
    halves to the even code, beyond 6 they are 6. Source: OCP Microscaling Formats 1.0, section 5.3.3."""
    import torch

    size = values.abs()
    small, middle = (size * 2).round_() / 2, size.round()
    large = (size / 2).round_().mul_(2).clamp_max_(E2M1_MAX)
    return torch.where(size < 2, small, torch.where(size < 4, middle, large)).copysign_(values)


def e2m1_codes(levels: "torch.Tensor") -> "torch.Tensor":
    """uint8 codes of numbers of E2M1: three bits of magnitude, then the sign. Zero has no sign."""
    import torch

    size = levels.abs()
    index = torch.where(size < 2, size * 2, torch.where(size < 4, size + 2, size / 2 + 4))
    return (index + 8 * (levels < 0)).to(torch.uint8)


def tensor_scale(largest: float) -> float:
    """What scales of E4M3 are multiplied by for weights of a magnitude up to ``largest``: the largest power
    of two that keeps those of the search within E4M3. A power of two, so that no reader rounds; loaders join
    layers, so that those of one module must have the same."""
    import math

    if largest <= 0:
        return 1.0
    return 2.0 ** math.floor(math.log2(E4M3_MAX * E2M1_MAX / (largest * 1.75)))


def to_nvfp4(weight: "torch.Tensor", whole: float, group: int = 16) -> FloatCodes:
    """``weight`` (o, i) float32 in E2M1, groups of ``group`` inputs with scales of E4M3 over ``whole``
    (``tensor_scale``). Of the scales around the one that clips nothing (``FEWER``, ``MORE``) the one of the
    least sum of squared errors, the smallest of equals. Errors: StepFailed where a weight is not finite."""
    import torch

    def candidates(largest: "torch.Tensor") -> "list[torch.Tensor]":
        plain = (largest / E2M1_MAX * whole).clamp_max(E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
        codes = (plain.to(torch.int32) + step for step in range(-FEWER, MORE + 1))
        held = (c.clamp(1, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn) for c in codes)
        return [each.to(torch.float32) / whole for each in held]

    return _searched(weight, group, candidates, whole)


def to_mxfp4(weight: "torch.Tensor", group: int = 32) -> FloatCodes:
    """``weight`` (o, i) float32 in E2M1, groups of ``group`` inputs with a power of two each: of that of the
    OCP specification (the largest magnitude's exponent less 2) and its neighbours the one of the least sum of
    squared errors, the smallest of equals. Errors: StepFailed where a weight is not finite."""
    import torch

    def candidates(largest: "torch.Tensor") -> "list[torch.Tensor]":
        exponent = torch.frexp(largest)[1] - 1 - 2
        steps = (torch.clamp(exponent + step, -126, 127) for step in STEPS)
        return [torch.ldexp(torch.ones_like(largest), each) for each in steps]

    return _searched(weight, group, candidates, 1.0)


def _searched(weight: "torch.Tensor", group: int, candidates: Candidates, whole: float) -> FloatCodes:
    import torch

    check_finite(weight)
    inputs = weight.shape[1]
    if inputs % group:
        raise ValueError(f"groups of {group} do not divide {inputs} inputs")
    found = [_search_rows(part, group, candidates) for part in weight.split(max(1, CHUNK // inputs))]
    levels, scales = (torch.cat(each) for each in zip(*found, strict=True))
    return FloatCodes(e2m1_codes(levels), levels, scales * whole, (1, group), whole)


def _search_rows(
    weight: "torch.Tensor", group: int, candidates: Candidates
) -> "tuple[torch.Tensor, torch.Tensor]":
    """(levels (o, i), scales (o, g)): of each group what errs least."""
    import torch

    groups = weight.unflatten(1, (-1, group))
    largest = groups.abs().amax(-1)
    least = torch.full_like(largest, torch.inf)
    best = torch.ones_like(largest)
    for scale in candidates(largest):
        wide = scale[..., None]
        error = nearest_e2m1(groups / wide).mul_(wide).sub_(groups).square_().sum(-1)
        better = (error < least) & (largest > 0)
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return nearest_e2m1(groups / best[..., None]).flatten(1), best
