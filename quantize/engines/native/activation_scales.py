"""What schemes of compressed-tensors take from calibration: the largest magnitudes that enter the matrices
when the model runs."""

import numpy as np

from quantize.calibration.collectors import Largest
from quantize.calibration.layer_pass import BATCH_TOKENS, LayerPass
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.native.budget import Budget
from quantize.engines.native.precision import arithmetic_of
from quantize.errors import StepFailed
from quantize.formats.compressed_tensors import CtFormat
from quantize.numerics.small_floats import tensor_scale
from quantize.progress import progress_bar
from quantize.recipe import RunOptions


def input_scales(
    checkpoint: Checkpoint, format: CtFormat, rows: np.ndarray, run: RunOptions, title: str
) -> tuple[dict[str, float], str]:
    """(by matrix what scales of its activations are divided by, the arithmetic that was used).

    A power of two from the largest magnitude that enters the matrix when the model runs on ``rows`` (n,
    length); of a layer's experts one for all, because loaders take one. Errors: as of ``LayerPass`` and
    ``Budget``; StepFailed where nothing enters a matrix.
    """
    assert format.decoder is not None
    wanted = {linear.name for linear in format.linears}
    every = [tuple(each for each in layer if each.name in wanted) for layer in format.decoder.layers]
    arithmetic, largest = arithmetic_of(run), Largest()
    budget = Budget(checkpoint, every, run, BATCH_TOKENS)
    with (
        arithmetic.used(run.threads),
        progress_bar(f"{title}: activations", len(every), "layers", run.progress) as advance,
    ):
        for layer in LayerPass(
            checkpoint,
            rows,
            layers=format.decoder.layer_names,
            parameters=frozenset(linear.parameter for linear in format.linears),
            dtype=arithmetic.dtype,
            device=run.resolved_device,
            state_bytes=budget.state_bytes,
            scratch=run.scratch,
        ):
            layer.pass_on(largest)
            advance(1)
    found = {parameter: max(sizes.values()) for parameter, sizes in largest.result().items()}
    for linear in format.linears:
        if not found.get(linear.parameter, 0.0) < float("inf"):
            raise StepFailed(f"{checkpoint.source}: what enters {linear.name} is NaN or Inf")
        if linear.parameter not in found:
            raise StepFailed(
                f"{checkpoint.source}: no token reached {linear.name}; give more calibration text"
            )
    return {linear.name: tensor_scale(found[linear.parameter]) for linear in format.linears}, arithmetic.name
