"""What GPTQ and AWQ of this program's own share: a model's decoder layers one after the other, each quantized
on what the quantized ones before it give, and kept, so that an interrupted conversion goes on there."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.layer_pass import BATCH_TOKENS, Layer, LayerPass
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS, TORCH
from quantize.engines.base import Computed
from quantize.engines.native.budget import Budget
from quantize.engines.native.parts import Part, Parts, work_parts
from quantize.engines.native.precision import Arithmetic
from quantize.hf.matrices import DecoderLinears, Linear
from quantize.kernels.columns import column_maker
from quantize.numerics.grids import Codes
from quantize.progress import progress_bar
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch

#: raised whenever the same inputs give other bytes, as steps of jobs are done again then
VERSION = 2
#: makes a layer's part: the layer, the matrices of it that are to be quantized, bytes that statistics may
#: take. What it returns is already written into the layer.
Solve = Callable[[Layer, "tuple[Linear, ...]", int], Part]


@dataclass
class Quantized:
    """What was made of a model, readable as long as ``quantized_layers`` lasts. ``linears``: by name, those
    that have codes; ``sources``: tensors of the checkpoint that they replace; ``changed``: tensors that got
    other values, by their names there."""

    parts: Parts
    linears: dict[str, Linear] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()
    changed: "dict[str, torch.Tensor]" = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    computed: Computed = field(default_factory=Computed)
    went_on: int = 0
    _layer_of: dict[str, int] = field(default_factory=dict)
    _last: tuple[int, Part] | None = None

    def codes(self, name: str) -> Codes:
        """Of one matrix; cheapest layer by layer."""
        index = self._layer_of[name]
        if self._last is None or self._last[0] != index:
            part = self.parts.read(index)
            assert part is not None, f"the part of layer {index} is gone"
            self._last = index, part
        return self._last[1].codes[name]


@contextmanager
def quantized_layers(
    checkpoint: Checkpoint,
    decoder: DecoderLinears,
    linears: Sequence[Linear],
    rows: np.ndarray,
    run: RunOptions,
    solve: Solve,
    *,
    key: Mapping[str, Any],
    arithmetic: Arithmetic,
    title: str,
    original: bool = False,
    renamed: Mapping[str, str] = MappingProxyType({}),
    seen: frozenset[str] = frozenset(),
) -> Iterator[Quantized]:
    """``linears``, of the layers of ``decoder`` and perhaps its head, through ``solve``, layer by layer.

    ``key``: what changes the bytes, beside checkpoint, rows, versions and how it is run. Layers that an
    interrupted run of the same key finished are not solved again: what they give to later ones is computed
    from their stored codes, as it was. ``original``: ``solve`` leaves the layer as it was, so that later
    ones see what the source's weights give. ``renamed``: transformers' parameters that ``solve`` may change
    -> their tensors in the checkpoint, where names differ. ``seen``: other parameters whose products
    collectors are told of. Errors: see ``LayerPass`` and ``Budget``; whatever
    ``solve`` raises.
    """
    wanted = {linear.name for linear in linears}
    every = [tuple(each for each in layer if each.name in wanted) for layer in decoder.layers]
    head = decoder.output if decoder.output and decoder.output.name in wanted else None
    if head:
        every.append((head,))
    budget = Budget(checkpoint, every, run, BATCH_TOKENS, rows.size)
    full_key = {
        **key,
        "version": VERSION,
        "columns": column_maker(),
        **pass_key(checkpoint, rows, run, arithmetic),
    }
    with ExitStack() as stack:
        parts = stack.enter_context(work_parts(full_key, run.scratch))
        stack.enter_context(arithmetic.used(run.threads))
        advance = stack.enter_context(progress_bar(title, len(every), "layers", run.progress))
        done = Quantized(parts, linears={linear.name: linear for layer in every for linear in layer})
        through = LayerPass(
            checkpoint,
            rows,
            layers=decoder.layer_names,
            parameters=seen.union(linear.parameter for layer in every for linear in layer),
            head=head.parameter.removesuffix(".weight") if head else None,
            dtype=arithmetic.dtype,
            device=run.resolved_device,
            state_bytes=budget.state_bytes,
            repeated_bytes=0 if original else budget.repeated_bytes,
            scratch=run.scratch,
        )
        for layer in through:
            mine = every[layer.index]
            _took(done.computed, checkpoint, layer, mine, arithmetic.dtype)
            part = parts.read(layer.index)
            if part is None:
                part = solve(layer, mine, budget.statistics_bytes) if mine else Part()
                parts.write(layer.index, part)
            else:
                if not original:
                    _write(layer, mine, part)
                done.went_on += 1
            _keep(done, checkpoint, layer, mine, part, renamed, decoder.tied_head)
            advance(1)
        yield done


def pass_key(
    checkpoint: Checkpoint, rows: np.ndarray, run: RunOptions, arithmetic: Arithmetic
) -> dict[str, Any]:
    """What changes the activations of the source's model on ``rows``."""
    return {
        "code": _own_code(),
        "checkpoint": checkpoint.digest,
        "rows": [list(rows.shape), _sha256(rows)],
        "device": run.resolved_device,
        "threads": run.resolved_threads,
        "arithmetic": arithmetic.name,
        "versions": {name: metadata.version(name) for name in ("quantwright", "torch", "transformers")},
    }


@cache
def _own_code() -> str:
    """sha256 of this package's sources: a part that another state of them made is not gone on with."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _sha256(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _write(layer: Layer, linears: Sequence[Linear], part: Part) -> None:
    """A finished part into the layer, as it was when it had just been made."""
    import torch

    for linear in linears:
        if linear.name in part.codes:
            parameter = layer.parameters[linear.parameter]
            linear.place(parameter, part.codes[linear.name].values().to(parameter.device))
    with torch.no_grad():
        for name, values in part.changed.items():
            layer.module.get_parameter(name.removeprefix(f"{layer.name}.")).copy_(values)


def _took(
    computed: Computed, checkpoint: Checkpoint, layer: Layer, linears: Sequence[Linear], dtype: str
) -> None:
    """The weights as they are in memory before they are quantized; those that its dtype rounds are not
    told."""
    by_source: dict[str, list[Linear]] = {}
    for linear in linears:
        by_source.setdefault(linear.source, []).append(linear)
    for source, mine in by_source.items():
        info = checkpoint.tensors[source]
        if dtype == "float32" or TORCH[info.dtype] == dtype:
            held = {
                linear.name: linear.held(layer.parameters[linear.parameter]).float().cpu().numpy()
                for linear in mine
            }
            computed.took(source, _whole(info.shape, mine, held))


def _keep(
    done: Quantized,
    checkpoint: Checkpoint,
    layer: Layer,
    linears: Sequence[Linear],
    part: Part,
    renamed: Mapping[str, str],
    tied_head: Linear | None,
) -> None:
    import torch

    by_source: dict[str, list[Linear]] = {}
    for linear in linears:
        done._layer_of[linear.name] = layer.index
        if linear is tied_head:  # the embedding stays
            done.computed.add(f"{linear.name}.weight", part.codes[linear.name].values().cpu().numpy())
            continue
        by_source.setdefault(linear.source, []).append(linear)
    for source, mine in by_source.items():
        values = {linear.name: part.codes[linear.name].values().cpu().numpy() for linear in mine}
        done.computed.add(source, _whole(checkpoint.tensors[source].shape, mine, values))
    done.sources |= by_source.keys()
    for name, tensor in part.changed.items():
        source = name if name in checkpoint.tensors else renamed.get(name, name.partition(".")[2])
        info = checkpoint.tensors[source]
        stored = tensor.cpu().to(getattr(torch, TORCH[info.dtype])) if info.dtype in FLOATS else tensor
        done.changed[source] = stored
        done.computed.add(source, stored.float().numpy())
    done.losses |= part.losses
    done.notes += part.notes


def _whole(shape: tuple[int, ...], linears: Sequence[Linear], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The source's tensor, of the values of its matrices."""
    whole = np.zeros(shape, np.float32)
    for linear in linears:
        linear.give(whole, values[linear.name])
    return whole
