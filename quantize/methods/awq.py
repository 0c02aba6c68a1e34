"""AWQ: weights scaled by what their inputs look like, then rounded to 4 bits in groups (docs/methods/awq.md).

Output: a checkpoint in the AutoAWQ GEMM format, which transformers, vLLM, SGLang and GPTQModel load.
Source of the method: Lin et al., 2023, https://arxiv.org/abs/2306.00978.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from quantize.calibration.windows import Calibration
from quantize.engines.base import Conversion, Engine
from quantize.engines.gptqmodel import awq as gptqmodel
from quantize.engines.gptqmodel.awq import spread_rows
from quantize.engines.gptqmodel.layers import AWQ_OUTPUTS, WITHOUT_AWQ, check_model_type
from quantize.engines.isolated.known import isolated_label
from quantize.engines.isolated.packed import check_isolated, write_isolated
from quantize.engines.native import write_awq
from quantize.engines.native.importance import SEARCH_TOKENS
from quantize.engines.native.installed import NATIVE_PACKED
from quantize.engines.native.layers import VERSION
from quantize.errors import StepFailed
from quantize.formats.awq import AwqFormat
from quantize.formats.base import Format
from quantize.methods.base import Costs, Held
from quantize.methods.packed import PackedMethod, PackedWork, Packing, check_outputs, plan_packing, whole
from quantize.methods.transcoding import TranscodedWork, held_codes, plan_transcoding
from quantize.recipe import Recipe, RunOptions


def only_four(value: Any) -> Any:
    """Errors: ValueError for other widths, in words."""
    if (bits := whole(value)) != 4:
        raise ValueError(
            f"{bits!r}: AWQ's fast kernels know 4 bits only (docs/methods/awq.md); use gptq-int3 or gptq-int8"
        )
    return bits


class AwqRecipe(Recipe):
    """``group_size`` auto: 128 where it divides the inputs of every matrix, else 64, 32, or whole rows.
    ``search_tokens``: at most this many of the calibration tokens, in whole windows, are used to search
    scales and clipping.

    The default is 16 windows of 512: the AWQ paper (section 5.3) found that its scales, which follow channel
    means, need no more than 16 sequences. They go through the model once; with ``engine`` gptqmodel, 21 times
    through each layer. auto-round: no scales are searched; the rounding of each weight is tuned by
    ``iterations`` of SignRound, in an environment of its own.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"awq-int4": {}}
    automatic: ClassVar[dict[str, Any]] = {"group_size": 128}
    later: ClassVar[dict[str, Any]] = {"engine": "native", "iterations": 50}

    method: Literal["awq"] = "awq"
    bits: Annotated[Literal[4], BeforeValidator(only_four)] = 4
    group_size: Annotated[Literal["auto", -1, 32, 64, 128], BeforeValidator(whole)] = "auto"
    zero_point: bool = True
    search_tokens: int = Field(default=SEARCH_TOKENS, ge=128)
    engine: Literal["native", "gptqmodel", "autoawq", "auto-round"] = "native"
    iterations: int = Field(default=50, ge=1, le=2000)

    @model_validator(mode="after")
    def _fits(self) -> "AwqRecipe":
        if self.engine != "auto-round" and self.iterations != 50:
            raise ValueError("iterations needs engine=auto-round")
        return self

    @property
    def calibrated(self) -> bool:
        return True


class Awq(PackedMethod[AwqRecipe]):
    recipe_class: ClassVar[type[Recipe]] = AwqRecipe
    format: ClassVar[type[Format]] = AwqFormat
    engine: ClassVar[Engine] = NATIVE_PACKED
    costs: ClassVar[Costs] = Costs(
        start_s=15,
        seconds=0.7,
        base_bytes=800 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        stored_copies=0.0,
        states=2.0,
    )
    engine_costs: ClassVar[Costs] = Costs(
        start_s=25, seconds=1.0, base_bytes=800 << 20, bench_bytes=700 << 20, eval_bytes=760 << 20, copies=1.0
    )
    summary: ClassVar[str] = "AWQ weights of 4 bits in groups, calibrated; for transformers, vLLM and SGLang"

    def costs_of(self, recipe: Recipe) -> Costs:
        gptqmodel = getattr(recipe, "engine", "native") == "gptqmodel"
        return self.engine_costs if gptqmodel else super().costs_of(recipe)

    def work(self, held: Held, recipe: AwqRecipe) -> PackedWork[Any]:
        if recipe.engine == "gptqmodel":
            check_model_type(held.checkpoint, "AWQ", WITHOUT_AWQ)
        packing = Packing("awq", recipe.bits, recipe.group_size, not recipe.zero_point, recipe.short)
        if held_codes(held.checkpoint, recipe, recipe.bits, ("search_tokens", "engine")):
            return TranscodedWork(held, recipe, plan_transcoding(held.checkpoint, packing, lowest_zero=0))
        planned = plan_packing(held.checkpoint, packing)
        if recipe.engine == "gptqmodel":
            check_outputs(held.checkpoint, planned, recipe.short, AWQ_OUTPUTS)
        if self.environment(recipe):
            check_isolated(recipe.engine, held.checkpoint, planned.format, recipe.short)
        return AwqWork(held, recipe, planned)


class AwqWork(PackedWork[AwqRecipe]):
    @property
    def engine(self) -> str:
        if self.recipe.engine == "native":
            return f"native {VERSION}"
        return isolated_label(self.recipe.engine)

    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        recipe, format = self.recipe, self.planned.format
        if calibration is None:
            raise StepFailed(f"{recipe.short}: AWQ needs a calibration text; give --calibration")
        assert isinstance(format, AwqFormat)
        if recipe.engine == "native":
            return write_awq.write_awq(
                self.checkpoint,
                format,
                stage,
                run,
                calibration,
                spread_rows(calibration.ids, recipe.search_tokens),
                key=recipe.canonical,
                title=recipe.short,
            )
        if recipe.engine != "gptqmodel":
            return write_isolated(
                recipe.engine,
                self.checkpoint,
                format,
                stage,
                run,
                spread_rows(calibration.ids, recipe.search_tokens),
                {"iterations": recipe.iterations, "seed": calibration.record.seed},
                recipe.short,
            )
        return gptqmodel.write_awq(
            self.checkpoint,
            format,
            stage,
            run,
            calibration,
            title=recipe.short,
            search_tokens=recipe.search_tokens,
        )
