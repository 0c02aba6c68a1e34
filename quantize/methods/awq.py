"""AWQ: weights scaled by what their inputs look like, then rounded to 4 bits in groups. Engine: GPTQModel.

Output: a checkpoint in the AutoAWQ GEMM format, which transformers, vLLM, SGLang and GPTQModel load.
Source of the method: Lin et al., 2023, https://arxiv.org/abs/2306.00978.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from quantize.calibration.windows import Calibration
from quantize.engines.base import Conversion, Engine
from quantize.engines.gptqmodel import engine
from quantize.engines.gptqmodel.checkpoint import write_checkpoint
from quantize.engines.gptqmodel.computed import openers
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.engines.gptqmodel.layers import (
    check_model_type,
    check_shapes,
    kept_notes,
    quantizable,
    whole,
)
from quantize.engines.gptqmodel.load import load_gptqmodel
from quantize.errors import StepFailed
from quantize.formats.awq import AwqFormat
from quantize.formats.base import Format
from quantize.methods.base import Costs, Held, Method, Work
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP_SIZES = (32, 64, 128)
#: the engine searches clipping bounds 64 outputs at a time
OUTPUT_MULTIPLE = 64
_LAYERS = "the engine (GPTQModel 7.6) cannot run its attention separately to search scales; use gptq-int4"
EXCLUDED = {
    "gemma2": _LAYERS,
    "gemma3_text": "the engine (GPTQModel 7.6) cannot run its layers "
    "separately, as it has two rotary embeddings; use gptq-int4",
    "stablelm": _LAYERS,
    "cohere2": "the engine (GPTQModel 7.6) cannot move scales into its norm; use gptq-int4",
    "starcoder2": "the engine's (GPTQModel 7.6) output produces NaN when it runs; use gptq-int4",
}


class AwqRecipe(Recipe):
    """``search_tokens``: at most this many of the calibration tokens, in whole windows, are used to search
    scales and clipping.

    The search runs each layer 21 times over them, so they decide how long it takes. The default is 16 windows
    of 512: the AWQ paper (section 5.3) found its scales, which follow channel means, to need no more than 16
    sequences.
    """

    calibrated: ClassVar[bool] = True

    presets: ClassVar[dict[str, dict[str, Any]]] = {"awq-int4": {}}

    method: Literal["awq"] = "awq"
    bits: Annotated[Literal[4], BeforeValidator(whole)] = 4
    group_size: Annotated[Literal[-1, 32, 64, 128], BeforeValidator(whole)] = 128
    zero_point: bool = True
    search_tokens: int = Field(default=8192, ge=128)


class Awq(Method[AwqRecipe]):
    recipe_class: ClassVar[type[Recipe]] = AwqRecipe
    format: ClassVar[type[Format]] = AwqFormat
    engine: ClassVar[Engine] = GPTQMODEL
    costs: ClassVar[Costs] = Costs(
        start_s=25,
        seconds=20.0,
        base_bytes=1050 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        copies=1.8,
        saves_twice=True,
        reads_files=True,
    )
    summary: ClassVar[str] = "AWQ weights of 4 bits in groups, calibrated; for transformers, vLLM and SGLang"

    def work(self, held: Held, recipe: AwqRecipe) -> "AwqWork":
        checkpoint = held.checkpoint
        check_model_type(checkpoint, "AWQ", EXCLUDED)
        check_shapes(checkpoint, recipe.short, recipe.group_size, GROUP_SIZES, 8, OUTPUT_MULTIPLE)
        return AwqWork(held, recipe, AwqFormat(recipe.group_size), frozenset(quantizable(checkpoint)))

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_gptqmodel(folder, dtype, device, trust_remote_code=trust_remote_code)


class AwqWork(Work[AwqRecipe]):
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        checkpoint, recipe = self.checkpoint, self.recipe
        if calibration is None:
            raise StepFailed(f"{recipe.short}: AWQ needs a calibration text; give --calibration")

        def make_config(shared: dict[str, Any]) -> Any:
            from gptqmodel.quantization.config import AWQConfig

            return AWQConfig(
                bits=recipe.bits, group_size=recipe.group_size, sym=not recipe.zero_point, **shared
            )

        rows = spread_rows(calibration.ids, recipe.search_tokens)
        with engine.scratch_folder(stage, run) as scratch:
            result = engine.quantize(
                checkpoint, make_config, rows, scratch, run, backend="AWQ_TORCH", title=recipe.short
            )
            weight_bytes = write_checkpoint(
                checkpoint, result, stage, quantization_config(recipe, result.config)
            )
        loads, loading = openers(stage)
        return Conversion(
            weight_bytes=weight_bytes,
            engine=GPTQMODEL.label,
            libraries=GPTQMODEL.libraries,
            notes=[*kept_notes(checkpoint), *result.notes, *loading],
            details={"compute_dtype": engine.compute_dtype(run), "calibration_tokens_used": int(rows.size)},
            loads_in=loads,
            computed=result.computed,
        )


def spread_rows(ids: np.ndarray, tokens: int) -> np.ndarray:
    """At most ``tokens`` tokens (but one window) of ``ids`` (rows, length), in whole windows spread evenly
    over the rows."""
    wanted = min(len(ids), max(1, tokens // ids.shape[1]))
    return ids[np.linspace(0, len(ids) - 1, wanted).round().astype(int)]


def quantization_config(recipe: AwqRecipe, engine_config: dict[str, Any]) -> dict[str, Any]:
    """What loaders read, in AutoAWQ's words, without the paths and run settings that the engine adds."""
    meta = engine_config.get("meta", {})
    return {
        "quant_method": "awq",
        "version": "gemm",
        "format": "gemm",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "zero_point": recipe.zero_point,
        "sym": not recipe.zero_point,
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "modules_to_not_convert": None,
        "meta": {key: meta[key] for key in ("quantizer", "uri") if key in meta},
    }
