"""compressed-tensors (docs/methods/compressed-tensors.md): the schemes that vLLM serves, as llm-compressor
writes them. Rounded here, tensor by tensor; or, of integers, with the codes of GPTQ and AWQ.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import DENSE, STORED
from quantize.engines.base import Conversion, Engine
from quantize.engines.gptqmodel.awq import spread_rows
from quantize.engines.isolated.known import isolated_label
from quantize.engines.isolated.packed import check_isolated, write_isolated
from quantize.engines.native import write as native
from quantize.engines.native import write_awq
from quantize.engines.native.activation_scales import Measured, measured_scales
from quantize.engines.native.compressed_tensors import NATIVE_COMPRESSED, write_compressed
from quantize.engines.native.dense import NATIVE
from quantize.engines.native.layers import VERSION
from quantize.engines.native.opened import load_compressed
from quantize.engines.native.packed import write_configs
from quantize.errors import StepFailed, Unsupported
from quantize.formats.base import Format
from quantize.formats.codes import HoldsCodes
from quantize.formats.compressed_tensors import SCHEMES, CtFormat, Scheme
from quantize.formats.gptq import PACKED_ROWS
from quantize.formats.packed import PackedFormat
from quantize.hf.load import stored_dtype
from quantize.hf.matrices import DecoderLinears, Linear
from quantize.methods.awq import AwqRecipe
from quantize.methods.base import Costs, Held
from quantize.methods.gptq import GptqRecipe
from quantize.methods.packed import GroupSize, PackedMethod, PackedWork, Packing, Patterns, plan_packing
from quantize.methods.transcoding import TranscodedWork, held_codes, plan_transcoding
from quantize.numerics.rtn import VERSION as ROUNDING
from quantize.recipe import AUTO, Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: what stays beside head, routers and towers: projections into linear attention, whose state adds up errors
USUAL = (r"linear_attn\.in_proj",)


class CtRecipe(Recipe):
    """``scheme``: how weights are stored, and activations rounded. ``group_size`` and ``sym``: of w4a16 and
    w8a16; auto is 128 where it divides the inputs of every matrix, else 64, 32 or whole rows. ``by``: which
    codes, those of rounding to nearest, or of the native GPTQ or AWQ. ``ignore``: patterns (regular
    expressions) of names of matrices that stay as they are, instead of the usual ones. ``engine``
    llm-compressor: in an environment of its own, by its own scales and its GPTQ. ``kv_cache`` fp8: scales of
    keys and values from calibration, for loaders that keep them in float8."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {f"ct-{name}": {"scheme": name} for name in SCHEMES} | {
        "ct-w8a16": {"scheme": "w8a16", "group_size": -1}
    }
    automatic: ClassVar[dict[str, Any]] = {"group_size": 128}
    later: ClassVar[dict[str, Any]] = {"engine": "native", "kv_cache": "none"}

    method: Literal["ct"] = "ct"
    scheme: Literal[
        "fp8-dynamic", "fp8-block", "int8", "w8a16", "w4a16", "nvfp4a16", "nvfp4", "mxfp4a16", "mxfp4"
    ] = "fp8-dynamic"  # fmt: skip
    group_size: GroupSize = "auto"
    sym: bool = True
    by: Literal["rtn", "gptq", "awq"] = "rtn"
    ignore: Patterns = USUAL
    engine: Literal["native", "llm-compressor"] = "native"
    kv_cache: Literal["none", "fp8"] = "none"

    @model_validator(mode="after")
    def _fits(self) -> "CtRecipe":
        if SCHEMES[self.scheme].group and (self.group_size != AUTO or not self.sym):
            raise ValueError(
                f"{self.scheme} says itself what shares a scale; group_size and sym are of w4a16"
            )
        if self.scheme not in ("w4a16", "w8a16") and self.by != "rtn":
            raise ValueError(f"by={self.by} makes codes of integers: it goes with w4a16 and w8a16")
        # of these two it has AWQ that does not run on a CPU, and scales of activations by calibration
        if self.engine == "llm-compressor" and (self.by == "awq" or self.scheme == "nvfp4"):
            what = "by=awq" if self.by == "awq" else self.scheme
            raise ValueError(f"{what} is not asked of llm-compressor here; use engine=native")
        if self.by == "awq" and (self.scheme != "w4a16" or self.group_size not in (AUTO, -1, 32, 64, 128)):
            raise ValueError("by=awq goes with w4a16 in groups of 32, 64, 128 or -1")
        if self.kv_cache != "none" and (self.by != "rtn" or self.engine != "native"):
            raise ValueError("kv_cache=fp8 goes with by=rtn of engine=native")
        if not self.sym and self.scheme == "w8a16":
            raise ValueError("w8a16 is symmetric")
        return self

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        return self.by != "rtn" or self.scheme == "nvfp4" or self.kv_cache != "none"


@dataclass(frozen=True)
class CtPacking(Packing):
    scheme: str = "w4a16"
    scale_type: str = "BF16"
    folded: bool = False
    kv_cache: bool = False

    @property
    def how(self) -> Scheme:
        return SCHEMES[self.scheme]

    def multiples(self, linear: Linear) -> tuple[int, int]:
        """Whole words and bytes, whole groups of the schemes that fix them, and of blocks whole groups of
        activations."""
        if self.how.group == 0:
            return PACKED_ROWS[self.bits], 1 if self.symmetric else PACKED_ROWS[self.bits]
        return max(1, self.how.group), 1

    def made(self, group_size: int, linears: tuple[Linear, ...], decoder: DecoderLinears) -> PackedFormat:
        return CtFormat(
            self.bits,
            group_size,
            self.symmetric,
            linears,
            decoder,
            scheme=self.scheme,
            scale_type=self.scale_type,
            folded=self.folded,
            kv_cache=self.kv_cache,
        )


class Ct(PackedMethod[CtRecipe]):
    recipe_class: ClassVar[type[Recipe]] = CtRecipe
    format: ClassVar[type[Format]] = CtFormat
    engine: ClassVar[Engine] = NATIVE_COMPRESSED
    costs: ClassVar[Costs] = Costs(
        start_s=5, seconds=0.2, base_bytes=500 << 20, bench_bytes=700 << 20, eval_bytes=760 << 20, copies=0.5
    )
    summary: ClassVar[str] = (
        "compressed-tensors for vLLM and transformers: FP8, INT8, 4 bits in groups, NVFP4, MXFP4; "
        "uncalibrated, or with the codes of GPTQ or AWQ"
    )

    def work(self, held: Held, recipe: CtRecipe) -> PackedWork[Any]:
        how, checkpoint = SCHEMES[recipe.scheme], held.checkpoint
        size: int | str = how.group or recipe.group_size
        named = stored_dtype(checkpoint.config)
        kind = named if "dtype" in checkpoint.config or "torch_dtype" in checkpoint.config else ""
        scale_type = STORED[kind] if kind in DENSE else checkpoint.dtype
        packing = CtPacking(
            "compressed-tensors",
            how.bits,
            size,
            recipe.sym,
            recipe.short,
            skip=recipe.ignore,
            usual=USUAL,
            scheme=recipe.scheme,
            scale_type=scale_type if scale_type in ("BF16", "F16", "F32") else "F32",
            folded=recipe.by == "awq",
            kv_cache=recipe.kv_cache == "fp8",
        )
        codes = recipe.scheme in ("w4a16", "w8a16") and held_codes(
            checkpoint, recipe, how.bits, ("by", "engine", "kv_cache")
        )
        if codes:
            assert isinstance(checkpoint.reader, HoldsCodes)
            grid = next(iter(checkpoint.reader.grids.values()))
            # what is packed already stays so, whatever is usual
            skip = () if recipe.ignore == USUAL else recipe.ignore
            size = AUTO if recipe.scheme == "w8a16" and recipe.group_size == -1 else packing.group_size
            packing = replace(packing, scale_type=grid.scale_type, skip=skip, usual=(), group_size=size)
            return TranscodedWork(held, recipe, plan_transcoding(checkpoint, packing, lowest_zero=0))
        planned = plan_packing(checkpoint, packing)
        if recipe.kv_cache != "none":
            _check_kept(checkpoint, planned.format, recipe.short)
        if self.environment(recipe):
            check_isolated(recipe.engine, checkpoint, planned.format, recipe.short)
        return CtWork(held, recipe, planned)

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_compressed(folder, dtype, device, trust_remote_code=trust_remote_code)


def _check_kept(checkpoint: Checkpoint, format: PackedFormat, short: str) -> None:
    """Errors: Unsupported where not every decoder layer has keys and values of its own in the usual place."""
    assert isinstance(format, CtFormat)
    assert format.decoder is not None
    text = checkpoint.config.get("text_config") or checkpoint.config
    there = {layer for layer, _ in format.attentions}
    odd = next((layer for layer in format.decoder.layer_names if layer not in there), None)
    why = f"{odd} has no self_attn with k_proj and v_proj" if odd else ""
    mine = (linear for linear in format.decoder if ".self_attn." in linear.parameter)
    if any(f"{linear.name}.weight" != linear.parameter for linear in mine):
        why = "its files name attention otherwise than transformers does"
    if text.get("num_kv_shared_layers"):
        why = "some of its layers take the keys and values of others"
    if why:
        raise Unsupported(f"{checkpoint.source}: {short}: {why}; drop kv_cache")


class CtWork(PackedWork[CtRecipe]):
    @property
    def engine(self) -> str:
        if self.recipe.engine != "native":
            return isolated_label(self.recipe.engine)
        if self.recipe.calibrated:
            return f"native {VERSION}"
        return f"rounding {ROUNDING}" if SCHEMES[self.recipe.scheme].kind == "int" else ""

    @property
    def chosen(self) -> str:
        return super().chosen if SCHEMES[self.recipe.scheme].group == 0 else ""

    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        recipe, format = self.recipe, self.planned.format
        assert isinstance(format, CtFormat)
        if recipe.calibrated and calibration is None:
            raise StepFailed(f"{recipe.short} needs a calibration text; give --calibration")
        if recipe.engine != "native":
            rows = calibration.ids if calibration else None
            settings = {"by": recipe.by, "config": format.own_config()}
            return write_isolated(
                recipe.engine, self.checkpoint, format, stage, run, rows, settings, recipe.short
            )
        if recipe.by == "rtn":
            measured = Measured()
            details: dict[str, Any] = {}
            if calibration is not None:
                native.check_text(calibration)
                rows = calibration.ids
                measured = measured_scales(self.checkpoint, format, rows, run, recipe.short)
                details = {"compute_dtype": measured.arithmetic, "calibration_tokens_used": int(rows.size)}
            size, computed, hashed = write_compressed(
                self.checkpoint, format, stage, run, recipe.short, measured
            )
            write_configs(self.checkpoint, format, stage)
            return Conversion(
                size,
                NATIVE.label,
                libraries=("torch",),
                computed=computed,
                details=details,
                sha256=hashed,
            )
        assert calibration is not None
        if recipe.by == "awq":
            rows = spread_rows(calibration.ids, AwqRecipe().search_tokens)
            return write_awq.write_awq(
                self.checkpoint,
                format,
                stage,
                run,
                calibration,
                rows,
                key=recipe.canonical,
                title=recipe.short,
            )
        usual = GptqRecipe()
        choices = native.GptqChoices(
            usual.damp_percent, usual.order, usual.true_sequential, usual.refinements, usual.on_failure
        )
        return native.write_gptq(
            self.checkpoint,
            format,
            stage,
            run,
            calibration,
            choices,
            key=recipe.canonical,
            title=recipe.short,
        )
