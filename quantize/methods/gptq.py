"""GPTQ: rounding a weight at a time, each error made up for by the weights not yet rounded. Engine:
GPTQModel.

Output: a checkpoint in the AutoGPTQ format (v1), which transformers, vLLM, SGLang and GPTQModel load.
Source of the method: Frantar et al., 2022, https://arxiv.org/abs/2210.17323.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.engines.gptqmodel.layers import (
    GROUP_SIZES,
    check_model_type,
    check_shapes,
    kept_notes,
    packed_layers,
    quantizable,
    whole,
)
from quantize.errors import StepFailed
from quantize.methods.base import Method
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    import torch

#: rows that whole 32-bit words of codes need
PACKED_ROWS = {2: 16, 3: 32, 4: 8, 8: 4}


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


class Gptq(Method):
    recipe_class = GptqRecipe
    summary = "GPTQ weights of 2, 3, 4 or 8 bits in groups, calibrated; for transformers, vLLM and SGLang"
    needs = (("gptqmodel", "gptqmodel"), ("optimum", "optimum"), ("ninja", "ninja"))
    extra = "gptq"
    loads_in = ("transformers", "vllm", "sglang", "gptqmodel")

    def check(self, checkpoint: Checkpoint, recipe: GptqRecipe) -> None:
        check_model_type(checkpoint, "GPTQ", {})
        multiple = PACKED_ROWS[recipe.bits]
        check_shapes(checkpoint, recipe.short, recipe.group_size, GROUP_SIZES, multiple, multiple)

    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: GptqRecipe,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        from quantize.engines.gptqmodel import engine
        from quantize.engines.gptqmodel.checkpoint import write_checkpoint
        from quantize.engines.gptqmodel.computed import openers

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
            engine=engine.engine_name(),
            libraries=engine.LIBRARIES,
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

    def quantized(self, stage: Path, recipe: GptqRecipe) -> dict[str, str]:
        from quantize.engines.gptqmodel.checkpoint import stored_tensors

        tensors = dict(stored_tensors(stage).tensors)
        group = f" g{recipe.group_size}" if recipe.group_size > 0 else " per channel"
        found = {}
        for base, qweight in packed_layers(tensors, recipe.bits, along_inputs=True).items():
            inputs, index = qweight.shape[0] * 32 // recipe.bits, tensors.get(f"{base}.g_idx")
            groups = inputs // recipe.group_size if recipe.group_size > 0 else 1
            if tensors[f"{base}.scales"].shape[0] == groups and (index is None or index.shape == (inputs,)):
                found[f"{base}.weight"] = f"gptq-int{recipe.bits}{group}"
        return found

    def expected(self, checkpoint: Checkpoint, recipe: GptqRecipe) -> set[str]:
        return set(quantizable(checkpoint))

    def activation_types(self, stage: Path, recipe: GptqRecipe) -> dict[str, str] | None:
        """The 4-bit kernel for CPUs takes and gives bfloat16; the other widths compute in the dtype of the
        model."""
        if recipe.bits != 4:
            return None
        return dict.fromkeys(self.quantized(stage, recipe), "bf16_io")

    def kl_tolerance(self, recipe: GptqRecipe) -> float:
        """Of the runtime's logits against this file's reader. The 4-bit kernel for CPUs rounds scales and
        activations to bfloat16 (2e-5 seen); the others compute in the dtype of the model (4e-8 seen in
        float32)."""
        return 1e-3 if recipe.bits == 4 else 1e-5

    def dequantize(
        self, stage: Path, recipe: GptqRecipe, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        from quantize.engines.gptqmodel.checkpoint import stored_tensors
        from quantize.numerics.packing import dequantize_gptq

        stored = stored_tensors(stage)
        for name in checkpoint.tensors:
            if name in stored.tensors:
                yield name, stored.read_float32(name)
                continue
            base = name.removesuffix(".weight")
            index = stored.read(f"{base}.g_idx") if f"{base}.g_idx" in stored.tensors else None
            scales = stored.read_float32(f"{base}.scales")
            yield (
                name,
                dequantize_gptq(
                    stored.read(f"{base}.qweight"),
                    stored.read(f"{base}.qzeros"),
                    scales,
                    index,
                    recipe.bits,
                    recipe.group_size,
                ),
            )


def _number(text: Any) -> float | None:
    """None for a layer that was rounded to nearest, of which the engine writes words."""
    try:
        return float(text)
    except ValueError:
        return None


def quantization_config(recipe: GptqRecipe, engine_config: dict[str, Any]) -> dict[str, Any]:
    """What loaders read, without what the engine adds of paths and of settings of its own run."""
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
    from quantize.numerics.packing import lift_zero_points

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
