"""AWQ by GPTQModel: its search, its packing, our files."""

from pathlib import Path
from typing import Any

import numpy as np

from quantize.calibration.windows import Calibration, spread
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.engines.gptqmodel import engine
from quantize.engines.gptqmodel.checkpoint import write_checkpoint
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.formats.awq import AwqFormat
from quantize.recipe import RunOptions


def write_awq(
    checkpoint: Checkpoint,
    format: AwqFormat,
    stage: Path,
    run: RunOptions,
    calibration: Calibration,
    *,
    title: str,
    search_tokens: int,
) -> Conversion:
    """Errors: as ``engine.quantize``."""

    def make_config(shared: dict[str, Any]) -> Any:
        from gptqmodel.quantization.config import AWQConfig

        return AWQConfig(bits=format.bits, group_size=format.group_size, sym=format.symmetric, **shared)

    rows = spread_rows(calibration.ids, search_tokens)
    with engine.scratch_folder(stage, run) as scratch:
        result = engine.quantize(
            checkpoint, make_config, rows, scratch, run, backend="AWQ_TORCH", title=title
        )
        meta = result.config.get("meta", {})
        kept = {key: meta[key] for key in ("quantizer", "uri") if key in meta}
        weight_bytes = write_checkpoint(checkpoint, result, stage, format.config(checkpoint, kept))
    return Conversion(
        weight_bytes=weight_bytes,
        engine=GPTQMODEL.label,
        libraries=GPTQMODEL.libraries,
        notes=result.notes,
        details={"compute_dtype": engine.compute_dtype(run), "calibration_tokens_used": int(rows.size)},
        computed=result.computed,
    )


def spread_rows(ids: np.ndarray, tokens: int) -> np.ndarray:
    """At most ``tokens`` tokens (but one window) of ``ids`` (rows, length), in whole windows spread evenly
    over the rows."""
    return ids[spread(len(ids), max(1, tokens // ids.shape[1]))]
