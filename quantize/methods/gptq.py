"""GPTQ: rounding a weight at a time, each error made up for by the weights not yet rounded.

Output: a checkpoint in the AutoGPTQ format (v1), which transformers, vLLM, SGLang and GPTQModel load.
Source of the method: Frantar et al., 2022, https://arxiv.org/abs/2210.17323.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from quantize.calibration.windows import Calibration
from quantize.engines.base import Conversion, Engine
from quantize.engines.gptqmodel.gptq import write_gptq
from quantize.engines.gptqmodel.layers import check_model_type
from quantize.engines.isolated.known import isolated_label
from quantize.engines.isolated.packed import check_isolated, write_isolated
from quantize.engines.native import write as native
from quantize.engines.native.installed import NATIVE_PACKED
from quantize.engines.native.layers import VERSION
from quantize.errors import StepFailed
from quantize.formats.base import Format
from quantize.formats.gptq import GptqFormat
from quantize.methods.base import Costs, Held
from quantize.methods.overrides import Overrides, read_override
from quantize.methods.packed import (
    GroupSize,
    PackedMethod,
    PackedWork,
    Packing,
    Patterns,
    plan_packing,
    whole,
)
from quantize.methods.transcoding import TranscodedWork, held_codes, plan_transcoding
from quantize.recipe import Recipe, RunOptions

#: fields that say how codes are chosen
CHOICES = (
    "desc_act", "damp_percent", "engine", "order", "true_sequential", "refinements", "on_failure",
    "overrides",
)  # fmt: skip


class GptqRecipe(Recipe):
    """``group_size`` auto: 128 where it divides the inputs of every matrix, else 64, 32, or whole rows.
    ``sym`` fixes the zero point.

    ``engine`` native: columns are visited in ``order`` of their activations, or as they stand; groups are of
    neighbours either way, so that kernels stay fast. ``true_sequential``: each matrix on what the quantized
    ones before it in its layer give. ``refinements``: rounds of scales fitted to the codes and codes chosen
    again that follow; 0 is GPTQ proper. ``skip``: patterns (regular expressions) of names of matrices that
    stay as they are; ``overrides``: other bits, groups or zero points for those that a pattern fits;
    ``lm_head``: the output layer too, apart from the embedding where it was tied to that.
    ``on_failure``: a matrix whose Hessian cannot be used fails the conversion, or is
    rounded to nearest (``rtn``) and named. gptqmodel: ``desc_act`` visits columns in the order of their
    activations, with groups of their own (slower to run); native needs no such groups. auto-round: the
    rounding of each weight is tuned by ``iterations`` of SignRound instead, in an environment of its own.
    auto-gptq: as gptqmodel, in an environment of its own, on a CUDA GPU only.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gptq-int4": {"bits": 4},
        "gptq-int3": {"bits": 3},
        "gptq-int2": {"bits": 2},
        "gptq-int8": {"bits": 8},
    }
    automatic: ClassVar[dict[str, Any]] = {"group_size": 128}
    later: ClassVar[dict[str, Any]] = {
        "engine": "native", "order": "activation", "true_sequential": True, "refinements": 2,
        "on_failure": "fail", "skip": [], "overrides": [],
        "lm_head": False, "iterations": 50,
    }  # fmt: skip

    method: Literal["gptq"] = "gptq"
    bits: Annotated[Literal[2, 3, 4, 8], BeforeValidator(whole)] = 4
    group_size: GroupSize = "auto"
    desc_act: bool = False
    sym: bool = True
    damp_percent: float = Field(default=0.05, gt=0, lt=1)
    engine: Literal["native", "gptqmodel", "auto-round", "auto-gptq"] = "native"
    order: Literal["activation", "none"] = "activation"
    true_sequential: bool = True
    refinements: int = Field(default=2, ge=0, le=8)
    on_failure: Literal["fail", "rtn"] = "fail"
    skip: Patterns = ()
    overrides: Overrides = ()
    lm_head: bool = False
    iterations: int = Field(default=50, ge=1, le=2000)

    @model_validator(mode="after")
    def _fits(self) -> "GptqRecipe":
        if self.desc_act and self.order == "none":
            raise ValueError("desc_act=true and order=none contradict each other")
        native = ("order", "true_sequential", "refinements", "on_failure", "skip", "overrides", "lm_head")
        theirs = [name for name in native if name in self.canonical]
        if self.engine != "native" and theirs:
            raise ValueError(f"{theirs[0]} needs engine=native")
        if self.engine == "auto-round" and (self.desc_act or self.damp_percent != 0.05):
            raise ValueError("desc_act and damp_percent are GPTQ's; engine=auto-round has neither")
        if self.engine != "auto-round" and self.iterations != 50:
            raise ValueError("iterations needs engine=auto-round")
        return self

    @property
    def calibrated(self) -> bool:
        return True


class Gptq(PackedMethod[GptqRecipe]):
    recipe_class: ClassVar[type[Recipe]] = GptqRecipe
    format: ClassVar[type[Format]] = GptqFormat
    engine: ClassVar[Engine] = NATIVE_PACKED
    costs: ClassVar[Costs] = Costs(
        start_s=15,
        seconds=1.2,
        base_bytes=950 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        stored_copies=0.0,
        states=10.0,
    )
    engine_costs: ClassVar[Costs] = Costs(
        start_s=25,
        seconds=2.0,
        base_bytes=950 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        copies=1.6,
    )
    summary: ClassVar[str] = (
        "GPTQ weights of 2, 3, 4 or 8 bits in groups, calibrated; for transformers, vLLM and SGLang"
    )

    def costs_of(self, recipe: Recipe) -> Costs:
        gptqmodel = getattr(recipe, "engine", "native") == "gptqmodel"
        return self.engine_costs if gptqmodel else super().costs_of(recipe)

    def work(self, held: Held, recipe: GptqRecipe) -> PackedWork[Any]:
        if recipe.engine == "gptqmodel":
            check_model_type(held.checkpoint, "GPTQ", {})
        packing = Packing(
            "gptq",
            recipe.bits,
            recipe.group_size,
            recipe.sym,
            recipe.short,
            recipe.skip,
            tuple(map(read_override, recipe.overrides)),
            recipe.lm_head,
        )
        if held_codes(held.checkpoint, recipe, recipe.bits, CHOICES):
            return TranscodedWork(held, recipe, plan_transcoding(held.checkpoint, packing, lowest_zero=1))
        planned = plan_packing(held.checkpoint, packing)
        if self.environment(recipe):
            check_isolated(recipe.engine, held.checkpoint, planned.format, recipe.short)
        return GptqWork(held, recipe, planned)


class GptqWork(PackedWork[GptqRecipe]):
    @property
    def engine(self) -> str:
        if self.recipe.engine == "native":
            return f"native {VERSION}"
        return isolated_label(self.recipe.engine)

    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        recipe, format = self.recipe, self.planned.format
        if calibration is None:
            raise StepFailed(f"{recipe.short}: GPTQ needs a calibration text; give --calibration")
        assert isinstance(format, GptqFormat)
        if recipe.engine == "native":
            return native.write_gptq(
                self.checkpoint,
                format,
                stage,
                run,
                calibration,
                native.GptqChoices(
                    recipe.damp_percent,
                    recipe.order,
                    recipe.true_sequential,
                    recipe.refinements,
                    recipe.on_failure,
                ),
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
                calibration.ids,
                {
                    "iterations": recipe.iterations,
                    "seed": calibration.record.seed,
                    "desc_act": recipe.desc_act,
                    "damp_percent": recipe.damp_percent,
                },
                recipe.short,
            )
        return write_gptq(
            self.checkpoint,
            format,
            stage,
            run,
            calibration,
            title=recipe.short,
            desc_act=recipe.desc_act,
            damp_percent=recipe.damp_percent,
        )
