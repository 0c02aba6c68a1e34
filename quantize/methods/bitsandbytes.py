"""bitsandbytes through transformers: LLM.int8() rows, and 4-bit blocks of 64 (nf4, fp4), their scales
quantized too if asked.

Quantized while the model loads and saved before any forward pass: on a CPU a 4-bit model repacks its weights
when it runs, and what is saved after that reloads as noise, with no error.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.dtypes import dense
from quantize.engines.base import Computed, Conversion
from quantize.errors import StepFailed, Unsupported
from quantize.methods.base import Method
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from quantize.hf.names import Layers

BLOCK = 64  # weights that share a scale: the default of transformers, which the recipe does not change
CPU_OUTPUTS = 32  # rows that the layout for CPUs with bfloat16 instructions packs together
FLOAT16_MAX = 65504.0
STATE = ".quant_state.bitsandbytes__"


class BnbRecipe(Recipe):
    """``double_quant``: the 4-bit blocks' scales are themselves stored in 8 bits (0.37 bits a weight saved).
    ``threshold``: activations of int8 layers beyond it are multiplied in 16 bits; 0 multiplies all in 8."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        f"bnb-{w}": {"weights": w} for w in ("int8", "nf4", "fp4")
    }

    method: Literal["bnb"] = "bnb"
    weights: Literal["int8", "nf4", "fp4"] = "nf4"
    double_quant: bool = False
    threshold: float = Field(default=6.0, ge=0)

    @model_validator(mode="after")
    def _parameters_fit(self) -> "BnbRecipe":
        if self.weights == "int8" and self.double_quant:
            raise ValueError("double_quant belongs to nf4 and fp4; int8 has one scale per row")
        if self.weights != "int8" and self.threshold != 6.0:
            raise ValueError("threshold belongs to int8; nf4 and fp4 do not round activations")
        return self


class BitsAndBytes(Method):
    recipe_class: ClassVar[type[Recipe]] = BnbRecipe
    summary: ClassVar[str] = (
        "bitsandbytes: 8-bit rows or 4-bit blocks, no calibration; saved, or quantized while loading"
    )
    needs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bitsandbytes", "bitsandbytes"),
        ("accelerate", "accelerate"),
    )
    extra: ClassVar[str] = "bnb"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")

    def check(self, checkpoint: Checkpoint, recipe: BnbRecipe) -> None:
        from quantize.hf.names import find_layers

        layers = find_layers(checkpoint)
        names = set(layers.linear) - {layers.head} - layers.uses.direct
        if not names:
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear layers for bitsandbytes "
                "to quantize (its projections are another kind of layer); GGUF recipes may work"
            )
        if recipe.weights != "int8":
            odd = next((n for n in sorted(names) if layers.linear[n][0] * layers.linear[n][1] % 2), None)
            if odd:
                raise Unsupported(
                    f"{checkpoint.source}: {odd}.weight has an odd number "
                    "of weights, but two 4-bit weights share a byte"
                )

    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: BnbRecipe,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        """Errors: StepFailed where a weight is NaN or Inf, or, for int8, too large for float16, through which
        its scales go."""
        from quantize.checkpoint.tensors import write_config, write_state
        from quantize.hf.names import find_layers, kept_notes
        from quantize.hf.on_the_fly import quantize_bitsandbytes
        from quantize.quiet import quiet

        checkpoint.check_finite()
        layers = find_layers(checkpoint)
        if recipe.weights == "int8":
            _check_float16(checkpoint, {layers.tensor(name) for name in layers.linear if name != layers.head})
        dtype = dense(checkpoint.dtype, "bfloat16")
        with materialised(checkpoint, run.scratch) as folder:
            model = quantize_bitsandbytes(folder, recipe, dtype, run)
        with quiet():
            import bitsandbytes

            kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
            done = {name for name, module in model.named_modules() if isinstance(module, kinds)}
            quantization = json.loads(json.dumps(model.config.quantization_config.to_dict(), default=str))
            computed = _computed(model, layers)
            state = model.state_dict()
        if layers.tied:
            state.pop(f"{layers.head}.weight", None)
        config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
        weight_bytes = write_state(stage, state)
        write_config(stage, {**config, "dtype": dtype, "quantization_config": quantization})
        own = (
            "the model's own code multiplies with this weight, "
            "which bitsandbytes packs for use in its layer only"
        )
        reasons = {layers.tensor(name): own for name in layers.uses.direct}
        notes = kept_notes(
            checkpoint, {layers.tensor(name) for name in done}, layers, "bitsandbytes", reasons
        )
        for name in sorted(set(layers.linear) - done - {layers.head} - layers.uses.direct):
            if not any(
                note.tensor == layers.tensor(name) and "linear layers only" not in note.why for note in notes
            ):
                notes = [note for note in notes if note.tensor != layers.tensor(name)]
                notes.append(
                    Note(
                        tensor=layers.tensor(name),
                        what="kept unquantized",
                        why="transformers skips this module for bitsandbytes",
                    )
                )
        if recipe.weights != "int8":
            notes += [
                note
                for name in sorted(done)
                for note in _kernel_notes(layers.tensor(name), *layers.linear[name])
            ]
        return Conversion(
            weight_bytes,
            engine=_engine(),
            libraries=("bitsandbytes", "transformers", "torch"),
            notes=notes,
            details={"unquantized_dtype": dtype},
            computed=computed,
        )

    def quantized(self, stage: Path, recipe: BnbRecipe) -> dict[str, str]:
        from quantize.checkpoint.tensors import StoredTensors

        stored = StoredTensors(stage)
        found = {}
        for name, info in stored.info.items():
            base, marker, kind = name.partition(STATE)
            if marker and stored.info[base].dtype == "U8":
                found[base] = kind + (" double" if f"{base}.nested_absmax" in stored else "")
            elif (
                info.dtype == "I8"
                and name.endswith(".weight")
                and f"{name.removesuffix('weight')}SCB" in stored
            ):
                found[name] = "int8"
        return found

    def expected(self, checkpoint: Checkpoint, recipe: BnbRecipe) -> set[str]:
        from quantize.hf.names import find_layers

        layers = find_layers(checkpoint)
        return {
            f"{name}.weight"
            for name in layers.linear
            if name != layers.head and name not in layers.uses.direct
        }

    def fits(self, recipe: BnbRecipe, kind: str) -> bool:
        return kind == recipe.weights + (" double" if recipe.double_quant else "")

    def dequantize(
        self, stage: Path, recipe: BnbRecipe, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Errors: StepFailed where a folder's own codebook is not the one its type means."""
        from quantize.checkpoint.tensors import StoredTensors
        from quantize.hf.names import find_layers
        from quantize.numerics.bitsandbytes import dequantize_int8_rows

        stored, layers = StoredTensors(stage), find_layers(checkpoint)
        for name, source in layers.source.items():
            if layers.tied and name == f"{layers.head}.weight":
                continue
            kind = next((k for k in ("nf4", "fp4") if f"{name}{STATE}{k}" in stored), None)
            if kind:
                yield source, _read_4bit(stored, name, kind)
            elif stored.info[name].dtype == "I8":
                yield (
                    source,
                    dequantize_int8_rows(
                        stored.raw(name), stored.float32(f"{name.removesuffix('weight')}SCB")
                    ),
                )
            else:
                yield source, stored.float32(name)


def _kernel_notes(tensor: str, outputs: int, inputs: int) -> list[Note]:
    """Where bitsandbytes' own 4-bit kernels for CPUs fail at a layer."""
    elsewhere = "correct on GPUs and in this program"
    notes = []
    if inputs % BLOCK:
        why = f"bitsandbytes 0.50 computes such layers wrongly on CPUs with AVX-512; {elsewhere}"
        notes.append(Note(tensor=tensor, what=f"blocks of {BLOCK} that cross rows of {inputs}", why=why))
    if outputs % CPU_OUTPUTS:
        why = f"bitsandbytes 0.50 refuses it on CPUs with bfloat16 instructions; {elsewhere}"
        notes.append(Note(tensor=tensor, what=f"{outputs} outputs, not a multiple of {CPU_OUTPUTS}", why=why))
    return notes


def _read_4bit(stored: Any, name: str, kind: str) -> np.ndarray:
    from quantize.numerics.bitsandbytes import CODEBOOKS, dequantize_absmax, dequantize_blocks, dynamic_map

    state = json.loads(bytes(stored.raw(f"{name}{STATE}{kind}")))
    _same_map(stored, f"{name}.quant_map", CODEBOOKS[kind])
    if f"{name}.nested_absmax" in stored:
        _same_map(stored, f"{name}.nested_quant_map", dynamic_map())
        absmax = dequantize_absmax(
            stored.raw(f"{name}.absmax"),
            stored.float32(f"{name}.nested_absmax"),
            state["nested_offset"],
            state["nested_blocksize"],
        )
    else:
        absmax = stored.float32(f"{name}.absmax")
    return dequantize_blocks(
        stored.raw(name), absmax, CODEBOOKS[kind], state["blocksize"], tuple(state["shape"])
    )


def _computed(model: "PreTrainedModel", layers: "Layers") -> Computed:
    """The library's own dequantization of every weight, in float32."""
    import bitsandbytes as bnb
    import torch

    from quantize.hf.load import dequantize_flat

    computed = Computed()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = layers.source.get(name)
        if source is None or (layers.tied and name == f"{layers.head}.weight"):
            continue
        weight: Any = parameter
        with torch.no_grad():
            if isinstance(weight, bnb.nn.Params4bit) and weight.quant_state is not None:
                state = copy.copy(weight.quant_state)
                state.dtype = torch.float32
                values = dequantize_flat(weight.data, state)
            elif isinstance(weight, bnb.nn.Int8Params) and weight.dtype == torch.int8:
                values = bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB.float())
            else:
                values = weight.data
        computed.add(source, values.float().cpu().numpy())
    return computed


def _same_map(stored: Any, name: str, codebook: np.ndarray) -> None:
    if not np.allclose(stored.float32(name), codebook, rtol=0, atol=1e-6):
        raise StepFailed(
            f"{name}: not the codebook of its type; the artifact is "
            "damaged, or made by another bitsandbytes: convert again"
        )


def _check_float16(checkpoint: Checkpoint, names: set[str]) -> None:
    for name in sorted(names):
        largest = float(np.abs(checkpoint.read_float32(name)).max(initial=0))
        if largest > FLOAT16_MAX:
            raise StepFailed(
                f"{checkpoint.source}: tensor {name} holds values up to {largest:.4g}; bitsandbytes rounds "
                f"int8 layers to float16 first, whose largest value is {FLOAT16_MAX:.0f}; use bnb-nf4"
            )


def _engine() -> str:
    from importlib import metadata

    return f"bitsandbytes {metadata.version('bitsandbytes')}"
