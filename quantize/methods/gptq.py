"""GPTQ: rounding a weight at a time, each error made up for by the weights not yet rounded. Engine:
GPTQModel.

Output: a checkpoint in the AutoGPTQ format (v1), which transformers, vLLM, SGLang and GPTQModel load.
Source of the method: Frantar et al., 2022, https://arxiv.org/abs/2210.17323.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.engines.base import Conversion, Engine
from quantize.engines.gptqmodel import engine
from quantize.engines.gptqmodel.checkpoint import write_checkpoint
from quantize.engines.gptqmodel.computed import openers
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.engines.gptqmodel.layers import (
    GROUP_SIZES,
    check_model_type,
    check_shapes,
    kept_notes,
    quantizable,
    whole,
)
from quantize.engines.gptqmodel.load import load_gptqmodel
from quantize.errors import StepFailed
from quantize.formats.base import Format
from quantize.formats.gptq import PACKED_ROWS, GptqFormat
from quantize.methods.base import Costs, Held, Method, Work
from quantize.numerics.packing import lift_zero_points
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class GptqRecipe(Recipe):
    """``desc_act`` quantizes columns in the order of their activations (better, slower to run); ``sym`` fixes
    the zero point."""

    calibrated: ClassVar[bool] = True

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gptq-int4": {"bits": 4},
        "gptq-int3": {"bits": 3},
        "gptq-int2": {"bits": 2},
        "gptq-int8": {"bits": 8},
    }

    method: Literal["gptq"] = "gptq"
    bits: Annotated[Literal[2, 3, 4, 8], BeforeValidator(whole)] = 4
    group_size: Annotated[Literal[-1, 16, 32, 64, 128, 256, 512, 1024], BeforeValidator(whole)] = 128
    desc_act: bool = False
    sym: bool = True
    damp_percent: float = Field(default=0.05, gt=0, lt=1)


class Gptq(Method[GptqRecipe]):
    recipe_class: ClassVar[type[Recipe]] = GptqRecipe
    format: ClassVar[type[Format]] = GptqFormat
    engine: ClassVar[Engine] = GPTQMODEL
    costs: ClassVar[Costs] = Costs(
        start_s=25,
        seconds=2.0,
        base_bytes=950 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        copies=1.6,
        saves_twice=True,
        reads_files=True,
    )
    summary: ClassVar[str] = (
        "GPTQ weights of 2, 3, 4 or 8 bits in groups, calibrated; for transformers, vLLM and SGLang"
    )

    def work(self, held: Held, recipe: GptqRecipe) -> "GptqWork":
        checkpoint, multiple = held.checkpoint, PACKED_ROWS[recipe.bits]
        check_model_type(checkpoint, "GPTQ", {})
        check_shapes(checkpoint, recipe.short, recipe.group_size, GROUP_SIZES, multiple, multiple)
        format = GptqFormat(recipe.bits, recipe.group_size)
        return GptqWork(held, recipe, format, frozenset(quantizable(checkpoint)))

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_gptqmodel(folder, dtype, device, trust_remote_code=trust_remote_code)


class GptqWork(Work[GptqRecipe]):
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        checkpoint, recipe = self.checkpoint, self.recipe
        if calibration is None:
            raise StepFailed(f"{recipe.short}: GPTQ needs a calibration text; give --calibration")

        def make_config(shared: dict[str, Any]) -> Any:
            from gptqmodel.quantization.config import GPTQConfig

            return GPTQConfig(
                bits=recipe.bits,
                group_size=recipe.group_size,
                desc_act=recipe.desc_act,
                act_group_aware=not recipe.desc_act and recipe.group_size > 0,
                sym=recipe.sym,
                damp_percent=recipe.damp_percent,
                **shared,
            )

        lifted: dict[str, int] = {}
        with engine.scratch_folder(stage, run) as scratch:
            result = engine.quantize(
                checkpoint, make_config, calibration.ids, scratch, run, title=recipe.short
            )
            quantization = quantization_config(recipe, result.config)
            repack = None if recipe.sym else _lifting(recipe.bits, lifted)
            weight_bytes = write_checkpoint(checkpoint, result, stage, quantization, repack)
        loads, loading = openers(stage)
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
            notes=[*kept_notes(checkpoint), *result.notes, *notes, *loading],
            details={
                "compute_dtype": engine.compute_dtype(run),
                "calibration_tokens_used": int(calibration.ids.size),
                "loss": {
                    f"layer {row['layer']} {row['module']}": loss
                    for row in result.log
                    if (loss := _number(row["loss"])) is not None
                },
            },
            loads_in=loads,
            computed=result.computed,
        )


def _number(text: Any) -> float | None:
    """None for a layer that was rounded to nearest, of which the engine writes words."""
    try:
        return float(text)
    except ValueError:
        return None


def quantization_config(recipe: GptqRecipe, engine_config: dict[str, Any]) -> dict[str, Any]:
    """What loaders read, without the paths and run settings that the engine adds."""
    meta = engine_config.get("meta", {})
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "format": "gptq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "desc_act": recipe.desc_act,
        "sym": recipe.sym,
        "damp_percent": recipe.damp_percent,
        "true_sequential": bool(meta.get("true_sequential", True)),
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {
            key: meta[key]
            for key in ("quantizer", "uri", "act_group_aware", "static_groups", "mse")
            if key in meta
        },
    }


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
