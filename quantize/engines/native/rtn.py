"""Rounds each matrix to nearest, one tensor of the source, or one expert of it, in memory at a time; no model
is run."""

from pathlib import Path

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Computed
from quantize.engines.native.pieces import pieces
from quantize.engines.native.spool import Spool
from quantize.errors import QuantwrightError, StepFailed
from quantize.formats.packed import PackedFormat
from quantize.kernels.grid import grid_search
from quantize.numerics.rtn import round_to_nearest
from quantize.numerics.sketch import sketch
from quantize.progress import progress_bar
from quantize.recipe import RunOptions
from quantize.staging import held_folder


def write_rounded(
    checkpoint: Checkpoint, format: PackedFormat, stage: Path, run: RunOptions, title: str, points: int | None
) -> tuple[int, Computed]:
    """The weights' files into ``stage``; (bytes of tensor data, what was computed).

    ``points``: as ``find_grid``. Errors: StepFailed where a weight is not finite.
    """
    import torch

    if run.threads:
        torch.set_num_threads(run.threads)
    computed = Computed()
    device = run.resolved_device
    with (
        held_folder(run.scratch or stage, ".quantwright-engine-") as scratch,
        Spool(scratch) as spool,
        progress_bar(title, len(format.by_source), "tensors", run.progress) as advance,
    ):
        for source, linears in format.by_source.items():
            known: list[tuple[np.ndarray, np.ndarray]] = []
            for array, inside in pieces(checkpoint, source, linears):
                values = np.empty(array.shape, np.float32)
                for linear in inside:
                    weight = torch.from_numpy(linear.take(array)).to(device)
                    try:
                        codes = round_to_nearest(
                            weight, format.grid_of(linear), points=points, search=grid_search()
                        )
                    except QuantwrightError as error:
                        raise StepFailed(f"{checkpoint.source}: {linear.name}: {error}") from None
                    for name, tensor in format.pack(linear, codes).items():
                        spool.add(name, tensor)
                    linear.give(values, codes.values().cpu().numpy())
                known.append((sketch(array), sketch(values)))
            computed.keep(source, *map(np.concatenate, zip(*known, strict=True)))
            advance(1)
        for name, tensor in format.extras(checkpoint).items():
            spool.add(name, tensor)
        weight_bytes = spool.write(checkpoint, frozenset(format.by_source), stage)
    return weight_bytes, computed
