"""What schemes of compressed-tensors take from calibration: the largest magnitudes that enter the matrices,
and a cache of keys and values, when the model runs."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantize.calibration.collectors import Largest
from quantize.calibration.kept_states import watching_states
from quantize.calibration.layer_pass import BATCH_TOKENS, LayerPass
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.native.budget import Budget
from quantize.engines.native.precision import arithmetic_of
from quantize.errors import StepFailed
from quantize.formats.compressed_tensors import KEPT, CtFormat
from quantize.numerics.small_floats import E4M3_MAX, tensor_scale
from quantize.progress import progress_bar
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Measured:
    """``inputs``: by matrix what scales of its activations are divided by; ``kept``: by name in the file
    (``CtFormat.kept_states``) the scales of keys and values; ``arithmetic``: that was used."""

    inputs: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)
    arithmetic: str = ""


def measured_scales(
    checkpoint: Checkpoint, format: CtFormat, rows: np.ndarray, run: RunOptions, title: str
) -> Measured:
    """From running the source's model on ``rows`` (n, length).

    Of inputs a power of two from the largest magnitude that enters a matrix; of a layer's experts one for
    all, because loaders take one. Of keys, with their positions in, and of values the largest magnitude over
    448, 1 where all are zero, one for all heads of a layer. Errors: as of ``LayerPass``, ``Budget`` and
    ``keep_states``; StepFailed where nothing enters a matrix, or a layer keeps nothing.
    """
    assert format.decoder is not None
    wanted = {linear.name for linear in format.linears}
    every = [tuple(each for each in layer if each.name in wanted) for layer in format.decoder.layers]
    arithmetic, largest = arithmetic_of(run), Largest()
    kept: dict[str, torch.Tensor] = {}
    attentions = dict(format.attentions) if format.kv_cache else {}
    parameters = frozenset(linear.parameter for linear in format.linears) if format.measured else frozenset()
    budget = Budget(checkpoint, every, run, BATCH_TOKENS)
    with (
        arithmetic.used(run.threads),
        progress_bar(f"{title}: activations", len(every), "layers", run.progress) as advance,
    ):
        for layer in LayerPass(
            checkpoint,
            rows,
            layers=format.decoder.layer_names,
            parameters=parameters,
            dtype=arithmetic.dtype,
            device=run.resolved_device,
            state_bytes=budget.state_bytes,
            scratch=run.scratch,
        ):
            with ExitStack() as stack:
                if name := attentions.get(layer.name):
                    module = layer.module.get_submodule(name.removeprefix(f"{layer.name}."))
                    stack.enter_context(watching_states(module, partial(_largest, kept, name)))
                layer.pass_on(*([largest] if format.measured else []))
            advance(1)
    found = {parameter: max(sizes.values()) for parameter, sizes in largest.result().items()}
    for linear in format.linears if format.measured else ():
        if not found.get(linear.parameter, 0.0) < float("inf"):
            raise StepFailed(f"{checkpoint.source}: what enters {linear.name} is NaN or Inf")
        if linear.parameter not in found:
            raise StepFailed(
                f"{checkpoint.source}: no token reached {linear.name}; give more calibration text"
            )
    inputs = {linear.name: tensor_scale(found[linear.parameter]) for linear in format.linears if found}
    scales: dict[str, float] = {}
    for name in format.kept_states:
        size = float(kept[name]) if name in kept else float("nan")
        if not size < float("inf"):
            raise StepFailed(f"{checkpoint.source}: calibration gives no largest magnitude for {name}")
        scales[name] = size / E4M3_MAX if size else 1.0
    return Measured(inputs, scales, arithmetic.name)


def _largest(
    found: "dict[str, torch.Tensor]", name: str, keys: "torch.Tensor", values: "torch.Tensor"
) -> None:
    import torch

    for part, states in zip(KEPT, (keys, values), strict=True):
        size = states.detach().abs().amax().float()
        before = found.get(f"{name}.{part}")
        found[f"{name}.{part}"] = size if before is None else torch.maximum(before, size)
