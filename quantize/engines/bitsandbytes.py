"""bitsandbytes through transformers: LLM.int8() rows, and 4-bit blocks of 64 (nf4, fp4), their scales
quantized too if asked.

Quantized while the model loads and saved before any forward pass: on a CPU a 4-bit model repacks its weights
when it runs, and what is saved after that reloads as noise, with no error.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.checkpoint.tensors import write_config, write_state
from quantize.dtypes import dense
from quantize.engines.base import Computed, Conversion, Engine
from quantize.engines.in_memory import add_computed, stored_again
from quantize.errors import StepFailed
from quantize.formats.bitsandbytes import BLOCK
from quantize.hf.load import dequantize_flat, head_name, load_model, model_without_weights, torch_dtype
from quantize.hf.loaded import (
    ROUTER,
    beside_notes,
    experts_note,
    keep_dtypes,
    loaded,
    singly_noted,
)
from quantize.hf.names import kept_notes, linear_layers, renamed_again, router_layers
from quantize.hf.watched import linear_uses
from quantize.hf.wrappers import beside_text, lies_in
from quantize.quiet import quiet
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CPU_OUTPUTS = 32  # rows that the layout for CPUs with bfloat16 instructions packs together
FLOAT16_MAX = 65504.0


class BitsAndBytesEngine(Engine):
    distribution: ClassVar[str] = "bitsandbytes"
    needs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bitsandbytes", "bitsandbytes"),
        ("accelerate", "accelerate"),
    )
    extra: ClassVar[str] = "bnb"
    libraries: ClassVar[tuple[str, ...]] = ("bitsandbytes", "transformers", "torch")


BITSANDBYTES = BitsAndBytesEngine()


@dataclass(frozen=True)
class Settings:
    """``threshold``: of activations of int8 layers; ``vision``: what lies beside the text model is quantized
    too."""

    weights: str
    double_quant: bool = False
    threshold: float = 6.0
    vision: bool = False


def write(checkpoint: Checkpoint, stage: Path, run: RunOptions, settings: Settings) -> Conversion:
    """Errors: StepFailed where a weight is NaN or Inf, or, for int8, too large for float16, through which its
    scales go."""
    checkpoint.check_finite()
    found = loaded(checkpoint)
    layers, weights = found.layers, settings.weights
    linear = {**layers.linear, **(layers.linear_beside if settings.vision else {})}
    if weights == "int8":
        _check_float16(checkpoint, found.sources({name for name in linear if name != layers.head}))
    dtype = dense(checkpoint.dtype, "bfloat16")
    with materialised(checkpoint, run.scratch) as folder:
        model = quantize_in_memory(folder, settings, dtype, run)
    with quiet():
        import bitsandbytes

        kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
        done = {name for name, module in model.named_modules() if isinstance(module, kinds)}
        weights_done = frozenset(f"{name}.weight" for name in done)
        keep_dtypes(model, checkpoint, found.beside(weights_done))
        quantization = json.loads(json.dumps(model.config.quantization_config.to_dict(), default=str))
        computed = Computed()
        add_computed(computed, model, found, checkpoint, _exact)
        state = model.state_dict()
    if layers.tied:
        state.pop(f"{layers.head}.weight", None)
    if found.merged:
        state = stored_again(state, found, done, checkpoint)
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
    weight_bytes = write_state(stage, state)
    write_config(stage, {**config, "dtype": dtype, "quantization_config": quantization})
    own = (
        "the model's own code multiplies with this weight, which bitsandbytes packs for use in its layer only"
    )
    again = (
        "transformers takes the quantized weight's name for the checkpoint's when it opens it, and renames it"
    )
    reasons = (
        dict.fromkeys(found.sources(set(layers.uses.direct)), own)
        | dict.fromkeys(found.routers, ROUTER)
        | dict.fromkeys(found.sources(set(found.again)), again)
    )
    some = singly_noted(checkpoint, weights_done)
    notes = kept_notes(some, found.sources(done), layers, "bitsandbytes", reasons)
    notes += filter(None, [experts_note(checkpoint, "bitsandbytes")])
    notes += beside_notes(checkpoint, weights_done, "; vision=true quantizes its linear layers")
    for name in sorted(set(linear) - done - {layers.head} - layers.uses.direct):
        if not any(
            note.tensor == found.tensor(name) and "linear layers only" not in note.why for note in notes
        ):
            notes = [note for note in notes if note.tensor != found.tensor(name)]
            notes.append(
                Note(
                    tensor=found.tensor(name),
                    what="kept unquantized",
                    why="transformers skips this module for bitsandbytes",
                )
            )
    if weights != "int8":
        notes += [note for name in sorted(done) for note in _kernel_notes(found.tensor(name), *linear[name])]
    return Conversion(
        weight_bytes,
        engine=BITSANDBYTES.label,
        libraries=BITSANDBYTES.libraries,
        notes=notes,
        details={"unquantized_dtype": dtype},
        computed=computed,
    )


def quantize_in_memory(folder: Path, settings: Settings, dtype: str, run: RunOptions) -> "PreTrainedModel":
    """Quantized while it loads, never run: its first forward pass on a CPU may repack the weights. Layers
    whose weight the model's own code takes, and routers, are left alone, and what lies beside the text model
    unless ``settings`` say otherwise."""
    empty = model_without_weights(folder, dtype, trust_remote_code=run.trust_remote_code)
    skipped = set(linear_uses(folder, trust_remote_code=run.trust_remote_code).direct)
    skipped |= router_layers(empty) | renamed_again(empty)
    if settings.vision:
        skipped |= _left_beside(empty)
    else:
        skipped |= set(beside_text(empty))
    with quiet():
        from transformers import BitsAndBytesConfig

        if settings.weights == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=settings.threshold)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=settings.weights,
                bnb_4bit_use_double_quant=settings.double_quant,
                bnb_4bit_compute_dtype=torch_dtype(dtype),
            )
        if skipped:  # given any, transformers no longer leaves the output layer out by itself
            config.llm_int8_skip_modules = [*sorted(skipped), *filter(None, [head_name(empty)])]
    device = run.resolved_device
    return load_model(
        folder,
        dtype,
        device,
        trust_remote_code=run.trust_remote_code,
        quantization_config=config,
        device_map={"": device},
    )


def _left_beside(model: "PreTrainedModel") -> set[str]:
    """Linear layers beside the text model that ``linear_layers`` leaves out."""
    import torch

    beside, linear = beside_text(model), linear_layers(model)[2]
    return {
        name
        for name, module in model.named_modules()
        if lies_in(name, beside) and isinstance(module, torch.nn.Linear) and name not in linear
    }


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


def _exact(weight: Any) -> "torch.Tensor":
    """The library's own dequantization of a weight, in float32."""
    import bitsandbytes as bnb
    import torch

    if isinstance(weight, bnb.nn.Params4bit) and weight.quant_state is not None:
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        return dequantize_flat(weight.data, state)
    if isinstance(weight, bnb.nn.Int8Params) and weight.dtype == torch.int8:
        return bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB.float())
    return weight.data


def _check_float16(checkpoint: Checkpoint, names: set[str]) -> None:
    for name in sorted(names):
        largest = float(np.abs(checkpoint.read_float32(name)).max(initial=0))
        if largest > FLOAT16_MAX:
            raise StepFailed(
                f"{checkpoint.source}: tensor {name} holds values up to {largest:.4g}; bitsandbytes rounds "
                f"int8 layers to float16 first, whose largest value is {FLOAT16_MAX:.0f}; use bnb-nf4"
            )
