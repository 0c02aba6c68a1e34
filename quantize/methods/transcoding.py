"""A source that is packed already, to a recipe of the same grid in another format: its codes, scales and zero
points are taken over as they are, or refused before work where the format or the recipe cannot say them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.engines.native.dense import NATIVE
from quantize.engines.native.packed import write_configs
from quantize.engines.native.transcode import write_transcoded
from quantize.errors import Unsupported
from quantize.formats.codes import HeldGrid, HoldsCodes
from quantize.methods.packed import PackedWork, Packing, Planned, plan_packing
from quantize.recipe import AUTO, Recipe, RunOptions


def held_codes(checkpoint: Checkpoint, recipe: Recipe, bits: int, choices: tuple[str, ...]) -> bool:
    """Whether ``recipe`` transcodes ``checkpoint``: that is packed in ``bits``, and the recipe says nothing
    of how codes are chosen (``choices``: its fields that do). Else it is read as the weights that it means,
    and rounded again."""
    held = checkpoint.reader
    if not isinstance(held, HoldsCodes) or not held.grids:
        return False
    usual = type(recipe).model_fields
    asks = any(getattr(recipe, name) != usual[name].default for name in choices)
    return not asks and bits in {grid.bits for grid in held.grids.values()}


def plan_transcoding(checkpoint: Checkpoint, packing: Packing, lowest_zero: int) -> Planned:
    """``lowest_zero``: the lowest zero point that the format can say; the highest is as many above it as
    there are codes.

    Errors: Unsupported, with the first reason, where not every packed tensor can be taken over as it is.
    """
    held = checkpoint.reader
    assert isinstance(held, HoldsCodes)
    for reason in _grids_differ(held, packing):
        raise Unsupported(_refused(checkpoint, packing, reason))
    size = _group_size(held.grids)
    if packing.group_size not in (AUTO, size) and not _same_groups(held.grids, packing.group_size):
        reason = f"its codes are in groups of {size} inputs" if size > 0 else "a scale is of a whole row"
        raise Unsupported(_refused(checkpoint, packing, f"{reason}, and it asks for {packing.group_size}"))
    if size > 0 and size not in packing.group_sizes:
        reason = f"its groups of {size} inputs are none of {', '.join(map(str, packing.group_sizes))}"
        raise Unsupported(_refused(checkpoint, packing, reason))
    planned = plan_packing(checkpoint, replace(packing, group_size=size, only=frozenset(held.grids)))
    head = planned.format.head
    if head is not None and head.source not in held.grids:
        raise Unsupported(_refused(checkpoint, packing, f"its output layer {head.source} is not packed"))
    whys = {note.tensor: note.why for note in planned.notes}
    for name in held.grids:
        if name not in planned.expected:
            why = whys.get(name, "it is no matrix of a decoder layer")
            raise Unsupported(_refused(checkpoint, packing, f"{name} is packed and would not be: {why}"))
    for reason in _cannot_be_said(held, packing, lowest_zero):
        raise Unsupported(_refused(checkpoint, packing, reason))
    why = "codes, scales and zero points are the source's own; nothing was rounded"
    what = f"transcoded from {held.layout}: {len(held.grids)} tensors"
    return Planned(planned.format, (Note(tensor="*", what=what, why=why), *planned.notes))


def _refused(checkpoint: Checkpoint, packing: Packing, reason: str) -> str:
    again = "ct-w4a16:by=gptq" if packing.format == "compressed-tensors" else f"rtn-int{packing.bits}"
    return (
        f"{checkpoint.source}: {packing.short} cannot take its codes over without loss: {reason}; "
        f"convert the original checkpoint, or round it again with {again}"
    )


def _grids_differ(held: HoldsCodes, packing: Packing) -> Iterator[str]:
    """Of what headers and the order of inputs tell."""
    first, grid = next(iter(held.grids.items()))
    for name, other in held.grids.items():
        if other.bits != packing.bits:
            yield f"{name} is of {other.bits} bits"
        if other.scale_type != grid.scale_type:
            yield f"{name} has scales in {other.scale_type}, {first} in {grid.scale_type}"
        if held.reordered(name):
            yield f"groups of {name} are not of neighbouring inputs (act-order)"
    sizes = {grid.group_size: name for name, grid in held.grids.items() if grid.groups > 1}
    if len(sizes) > 1:
        yield f"groups are of {' and '.join(f'{size} inputs ({sizes[size]})' for size in sorted(sizes)[:2])}"
    whole = next((name for name, grid in held.grids.items() if grid.groups == 1), None)
    size = next(iter(sizes), 0)
    if whole is not None and size and held.grids[whole].inputs != size:
        yield f"groups are of {size} inputs, and of a whole row ({whole})"


def _group_size(grids: Any) -> int:
    """-1 where each row is one group."""
    return next((grid.group_size for grid in grids.values() if grid.groups > 1), -1)


def _same_groups(grids: Any, size: int | str) -> bool:
    return all(grid.groups == 1 and grid.inputs == size for grid in grids.values())


def _cannot_be_said(held: HoldsCodes, packing: Packing, lowest_zero: int) -> Iterator[str]:
    """Of zero points and scales, which are read for it."""
    middle, highest = 1 << (packing.bits - 1), lowest_zero + (1 << packing.bits) - 1
    for name, grid in held.grids.items():
        scales, zeros = held.scales(name)
        if packing.symmetric and (zeros != middle).any():
            other = _asymmetric(packing)
            yield f"{name} has zero points beside {middle}, and it is symmetric ({other} is not)"
        if zeros.min() < lowest_zero or zeros.max() > highest:
            odd = zeros.min() if zeros.min() < lowest_zero else zeros.max()
            yield f"{name} has a zero point of {odd}, and the format holds {lowest_zero} to {highest}"
        if _rounded(scales, grid, packing):
            yield f"scales of {name} are {grid.scale_type}, which float16 would round"


def _asymmetric(packing: Packing) -> str:
    return f"{packing.short}{',' if ':' in packing.short else ':'}sym=false"


def _rounded(scales: np.ndarray, grid: HeldGrid, packing: Packing) -> bool:
    """compressed-tensors keeps the source's type."""
    if packing.format == "compressed-tensors" or grid.scale_type == "F16":
        return False
    with np.errstate(over="ignore"):
        return not np.array_equal(scales.astype(np.float16).astype(np.float32), scales)


class TranscodedWork(PackedWork[Any]):
    @property
    def calibrated(self) -> bool:
        return False

    @property
    def value_rounding(self) -> float | None:
        """The second reader of the result reads what the source's codes mean, bit by bit."""
        return 0.0

    @property
    def chosen(self) -> str:
        return self.planned.notes[0].what

    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        format, held = self.planned.format, self.checkpoint.reader
        assert isinstance(held, HoldsCodes)
        size, computed = write_transcoded(self.checkpoint, format, stage, run, self.recipe.short)
        write_configs(self.checkpoint, format, stage)
        details = {"transcoded_from": held.layout}
        return Conversion(size, NATIVE.label, libraries=("torch",), computed=computed, details=details)
