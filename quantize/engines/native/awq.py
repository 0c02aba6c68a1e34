"""AWQ of this program's own, a layer at a time: which matrices share scales, what takes their inverse, and
what is said of it. The arithmetic is ``numerics.awq``; where scales can go, ``calibration.folding``.

Statistics are those of the original model: a layer runs once, on what the source's weights give.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantize.artifact.artifact import Note
from quantize.calibration.collectors import BlockMoments, Blocks, SecondMoments
from quantize.calibration.folding import Fold, apply_fold
from quantize.calibration.layer_pass import Layer
from quantize.engines.native.parts import Part
from quantize.hf.matrices import Linear
from quantize.kernels.scaled import column_errors, rounding_change
from quantize.numerics.awq import Sharing, clip, search_scales
from quantize.numerics.grids import Grid
from quantize.numerics.rtn import round_to_nearest

if TYPE_CHECKING:
    import torch

#: an expert that fewer tokens reached gets as many of the average token of all experts as are missing
FEW_TOKENS = 128
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
Parameters = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class AwqSettings:
    """``folds``: by name of the layer; ``stored``: dtype in the source of each parameter that a fold may
    change and that is not quantized."""

    grid: Grid
    folds: Mapping[str, tuple[Fold, ...]]
    stored: Mapping[str, str]


def awq_solver(
    settings: AwqSettings, squares: SecondMoments
) -> "Callable[[Layer, tuple[Linear, ...], int], Part]":
    """What ``quantized_layers`` asks for, of the original stream. ``squares`` gathers what enters every
    matrix that is seen."""

    def solve_layer(layer: Layer, linears: tuple[Linear, ...], statistics_bytes: int) -> Part:
        import torch

        only = frozenset(linear.parameter for linear in linears)
        moments = BlockMoments(settings.grid.group_size, only)
        layer.pass_on(moments, squares)
        with torch.no_grad():
            return _solve(layer, linears, _Statistics(moments, linears), settings)

    return solve_layer


class _Statistics:
    """What enters each matrix, in groups of columns; of an expert that few tokens reach, filled up."""

    def __init__(self, moments: BlockMoments, linears: Sequence[Linear]):
        self._found = moments.result()
        kinds: dict[str, set[tuple[str, int]]] = {}
        for linear in linears:
            kinds.setdefault(_kind(linear.parameter), set()).add((linear.parameter, linear.matrix))
        self._experts = {kind: places for kind, places in kinds.items() if len(places) > 1}

    def of(self, linear: Linear) -> tuple[Blocks | None, int]:
        """(None where no token reached any matrix like it; tokens that reached this one)."""
        own = self._found.get(linear.parameter, {}).get(linear.matrix)
        count = own.count if own else 0
        import torch

        places = self._experts.get(_kind(linear.parameter))
        if places is None or count >= FEW_TOKENS:
            return own, count
        every = [m for name, matrix in places if (m := self._found.get(name, {}).get(matrix))]
        tokens = sum(each.count for each in every)
        if not tokens:
            return None, 0
        share = (FEW_TOKENS - count) / tokens
        sums = torch.stack([each.sums for each in every]).sum(0) * share
        return Blocks(sums + own.sums if own else sums, FEW_TOKENS), count


def _kind(parameter: str) -> str:
    return _EXPERT.sub("*", parameter)


def _solve(layer: Layer, linears: Sequence[Linear], statistics: _Statistics, settings: AwqSettings) -> Part:
    import torch

    part = Part()
    folds = settings.folds.get(layer.name, ())
    touched = {name for fold in folds for name in (*fold.place.names, *fold.place.biases, *fold.consumers)}
    before = {f"{layer.name}.{name}": each for name, each in layer.module.named_parameters()}
    changed = {name: before[name].float().clone() for name in touched}
    columns: dict[tuple[str, int], torch.Tensor] = {}
    for whole in folds:
        for fold, matrix in _units(whole, changed):
            mine = [
                linear
                for linear in linears
                if linear.parameter in fold.consumers and matrix in (None, linear.matrix)
            ]
            sharing = [
                Sharing(
                    linear.held(before[linear.parameter]).float(),
                    moment.sums.diagonal(dim1=1, dim2=2).flatten(),
                )
                for linear in mine
                if (moment := statistics.of(linear)[0]) is not None
            ]
            if not sharing:
                continue
            found = search_scales(sharing, settings.grid, fold.origin, column_errors=column_errors())
            scales = _storable(fold, found.values, changed, settings.stored)
            apply_fold(fold, scales, changed, matrix)
            columns |= {(linear.parameter, linear.matrix): scales for linear in mine}
    for linear in linears:
        moment, tokens = statistics.of(linear)
        weight = linear.held(changed.get(linear.parameter, before[linear.parameter])).float()
        if moment is None:
            part.codes[linear.name] = round_to_nearest(weight.contiguous(), settings.grid)
        else:
            blocks = moment.sums / moment.count
            if (linear.parameter, linear.matrix) in columns:
                scales = columns[linear.parameter, linear.matrix].unflatten(0, (-1, blocks.shape[1]))
                blocks = blocks / scales[:, :, None] / scales[:, None, :]
            part.codes[linear.name] = clip(weight, blocks, settings.grid, rounding_change())
        part.notes += _notes(linear, moment, tokens)
    quantized = {linear.parameter for linear in linears}
    part.changed = {name: values for name, values in changed.items() if name not in quantized}
    return part


def _notes(linear: Linear, moment: Blocks | None, tokens: int) -> Iterator[Note]:
    if moment is None:
        why = "no calibration token reached it"
        yield Note(tensor=linear.name, what="rounded to nearest, without calibration", why=why)
    elif moment.count != tokens:
        what = f"statistics of its {tokens} tokens and of all experts of its layer"
        why = f"fewer than {FEW_TOKENS} tokens reached it"
        yield Note(tensor=linear.name, what=what, why=why)


def _units(fold: Fold, parameters: Parameters) -> "Iterator[tuple[Fold, int | None]]":
    """Each expert whose own up projection takes the scales of its down projection by itself; else all."""
    place = fold.place
    if len(place.names) > 1:
        for name in place.names:
            number = _EXPERT.search(name)
            assert number is not None
            mine = f"experts.{number[0]}."
            biases = tuple(bias for bias in place.biases if mine in bias)
            consumers = {each: axis for each, axis in fold.consumers.items() if mine in each}
            yield replace(fold, place=replace(place, names=(name,), biases=biases), consumers=consumers), None
    elif parameters[place.names[0]].dim() > 2:
        for matrix in range(len(parameters[place.names[0]])):
            yield fold, matrix
    else:
        yield fold, None


def _storable(
    fold: Fold, scales: "torch.Tensor", parameters: Parameters, stored: Mapping[str, str]
) -> "torch.Tensor":
    """The scales whose inverse a norm really takes once its weight is rounded as the file stores it."""
    import torch

    name = fold.place.names[0]
    held = parameters[name]
    if held.dim() > 1 or fold.power != 1 or name not in stored:
        return scales
    old = (held + 1 if fold.place.plus_one else held)[fold.origin]
    new = old / scales - (1 if fold.place.plus_one else 0)
    new = new.to(getattr(torch, stored[name])).float() + (1 if fold.place.plus_one else 0)
    usable = (old != 0) & (new != 0) & torch.isfinite(new)
    return torch.where(usable, old / torch.where(usable, new, 1), 1)
