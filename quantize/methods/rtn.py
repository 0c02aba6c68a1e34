"""Rounding to nearest in the formats of GPTQ and AWQ: no calibration, the floor for calibrated methods.

Scale and zero point of each group are those of the least squared error of its weights (``numerics.rtn``).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from quantize.calibration.windows import Calibration
from quantize.engines.base import Conversion, Engine
from quantize.engines.isolated.known import isolated_label
from quantize.engines.isolated.packed import check_isolated, write_isolated
from quantize.engines.native.dense import NATIVE
from quantize.engines.native.installed import NATIVE_PACKED
from quantize.engines.native.packed import write_configs
from quantize.engines.native.rtn import write_rounded
from quantize.formats.base import Format
from quantize.formats.gptq import GptqFormat
from quantize.methods.base import Costs, Held
from quantize.methods.packed import GroupSize, PackedMethod, PackedWork, Packing, plan_packing, whole
from quantize.numerics.rtn import VERSION
from quantize.recipe import AUTO, Recipe, RunOptions


class RtnRecipe(Recipe):
    """``format``: whose packing, gptq (2, 3, 4, 8 bits) or awq (4 bits). ``sym`` fixes the zero point.
    ``search``: scales by least error; else from the extremes of each group. ``engine`` auto-round: in an
    environment of its own, by its own rule."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rtn-int4": {"bits": 4},
        "rtn-int3": {"bits": 3},
        "rtn-int2": {"bits": 2},
        "rtn-int8": {"bits": 8},
    }
    automatic: ClassVar[dict[str, Any]] = {"group_size": 128}
    later: ClassVar[dict[str, Any]] = {"engine": "native"}

    method: Literal["rtn"] = "rtn"
    bits: Annotated[Literal[2, 3, 4, 8], BeforeValidator(whole)] = 4
    group_size: GroupSize = "auto"
    sym: bool = True
    search: bool = True
    format: Literal["gptq", "awq"] = "gptq"
    engine: Literal["native", "auto-round"] = "native"

    @model_validator(mode="after")
    def _fits(self) -> "RtnRecipe":
        if self.format == "awq" and self.bits != 4:
            raise ValueError("format=awq packs 4 bits; use format=gptq for others")
        if self.format == "awq" and self.group_size not in (AUTO, -1, 32, 64, 128):
            raise ValueError("format=awq takes groups of 32, 64, 128 or -1")
        if self.engine != "native" and not self.search:
            raise ValueError("search needs engine=native")
        return self


class Rtn(PackedMethod[RtnRecipe]):
    recipe_class: ClassVar[type[Recipe]] = RtnRecipe
    format: ClassVar[type[Format]] = GptqFormat
    engine: ClassVar[Engine] = NATIVE_PACKED
    costs: ClassVar[Costs] = Costs(
        start_s=5,
        seconds=0.3,
        base_bytes=700 << 20,
        bench_bytes=700 << 20,
        eval_bytes=760 << 20,
        stored_copies=0.0,
    )
    summary: ClassVar[str] = (
        "weights of 2, 3, 4 or 8 bits in groups, rounded to nearest, uncalibrated; in GPTQ's or AWQ's format"
    )

    def work(self, held: Held, recipe: RtnRecipe) -> "RtnWork":
        packing = Packing(recipe.format, recipe.bits, recipe.group_size, recipe.sym, recipe.short)
        planned = plan_packing(held.checkpoint, packing)
        if self.environment(recipe):
            check_isolated(recipe.engine, held.checkpoint, planned.format, recipe.short)
        return RtnWork(held, recipe, planned)


class RtnWork(PackedWork[RtnRecipe]):
    @property
    def engine(self) -> str:
        native = self.recipe.engine == "native"
        return f"rounding {VERSION}" if native else isolated_label(self.recipe.engine)

    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        if self.recipe.engine != "native":
            return write_isolated(
                self.recipe.engine,
                self.checkpoint,
                self.planned.format,
                stage,
                run,
                None,
                {"iterations": 0, "seed": 0},
                self.recipe.short,
            )
        points = None if self.recipe.search else 1
        weight_bytes, computed = write_rounded(
            self.checkpoint, self.planned.format, stage, run, title=self.recipe.short, points=points
        )
        write_configs(self.checkpoint, self.planned.format, stage)
        return Conversion(weight_bytes, NATIVE.label, libraries=("torch",), computed=computed)
