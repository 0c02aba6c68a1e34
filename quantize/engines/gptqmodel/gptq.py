"""GPTQ by GPTQModel: its solver, its packing, our files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.engines.gptqmodel import engine
from quantize.engines.gptqmodel.checkpoint import write_checkpoint
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.formats.gptq import GptqFormat
from quantize.numerics.packing import lift_zero_points
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch


def write_gptq(
    checkpoint: Checkpoint,
    format: GptqFormat,
    stage: Path,
    run: RunOptions,
    calibration: Calibration,
    *,
    title: str,
    desc_act: bool,
    damp_percent: float,
) -> Conversion:
    """Errors: as ``engine.quantize``."""

    def make_config(shared: dict[str, Any]) -> Any:
        from gptqmodel.quantization.config import GPTQConfig

        return GPTQConfig(
            bits=format.bits,
            group_size=format.group_size,
            desc_act=desc_act,
            act_group_aware=not desc_act and format.group_size > 0,
            sym=format.symmetric,
            damp_percent=damp_percent,
            **shared,
        )

    lifted: dict[str, int] = {}
    with engine.scratch_folder(stage, run) as scratch:
        result = engine.quantize(checkpoint, make_config, calibration.ids, scratch, run, title=title)
        meta = result.config.get("meta", {})
        kept = ("quantizer", "uri", "act_group_aware", "static_groups", "mse")
        quantization = {
            **format.config(checkpoint, {key: meta[key] for key in kept if key in meta}),
            "desc_act": desc_act,
            "damp_percent": damp_percent,
            "true_sequential": bool(meta.get("true_sequential", True)),
        }
        repack = None if format.symmetric else _lifting(format.bits, lifted)
        weight_bytes = write_checkpoint(checkpoint, result, stage, quantization, repack)
    notes = [
        Note(
            tensor=f"{name}.weight",
            what=f"{count} zero points are raised from 0 to 1 and lose their highest level",
            why="the format stores zero points minus one, so it cannot express 0",
        )
        for name, count in lifted.items()
    ]
    return Conversion(
        weight_bytes=weight_bytes,
        engine=GPTQMODEL.label,
        libraries=GPTQMODEL.libraries,
        notes=[*result.notes, *notes],
        details={
            "compute_dtype": engine.compute_dtype(run),
            "calibration_tokens_used": int(calibration.ids.size),
            "loss": {
                f"layer {row['layer']} {row['module']}": loss
                for row in result.log
                if (loss := _number(row["loss"])) is not None
            },
        },
        computed=result.computed,
    )


def _number(text: Any) -> float | None:
    """None for a layer that was rounded to nearest, of which the engine writes words."""
    try:
        return float(text)
    except ValueError:
        return None


def _lifting(bits: int, lifted: dict[str, int]) -> Any:
    """A ``repack`` that makes zero points of 0 expressible and counts them by layer in ``lifted``."""

    def repack(base: str, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        import torch

        qweight, qzeros, count = lift_zero_points(
            tensors[f"{base}.qweight"].numpy(),
            tensors[f"{base}.qzeros"].numpy(),
            tensors[f"{base}.g_idx"].numpy(),
            bits,
        )
        if not count:
            return tensors
        lifted[base] = count
        return {
            **tensors,
            f"{base}.qweight": torch.from_numpy(qweight),
            f"{base}.qzeros": torch.from_numpy(qzeros),
        }

    return repack
