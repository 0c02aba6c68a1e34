"""Quantize a plain checkpoint in memory with optimum-quanto or bitsandbytes: what is saved, or run at once
(``load_as``)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import BadInput
from quantize.hf.extensions import ensure_kernel_environment
from quantize.hf.load import (
    bitsandbytes_compute_in,
    load_model,
    model_without_weights,
    read_config,
    stored_dtype,
    torch_dtype,
)
from quantize.hf.watched import linear_uses
from quantize.quiet import quiet
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTO_TYPES = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8_e4m3fn"}


def load_quantized(
    folder: Path, recipe: Recipe, run: RunOptions, *, exact: bool = False
) -> "PreTrainedModel":
    """The plain checkpoint ``folder`` as ``recipe`` would quantize it, ready to run; nothing is saved.

    Errors: BadInput for a recipe that needs a conversion (calibration, or another file format).
    """
    stored = stored_dtype(read_config(folder))
    compute = (
        run.dtype if run.dtype != "auto" else "float32" if exact or run.resolved_device == "cpu" else stored
    )
    if recipe.method == "dense":
        dtype = str(getattr(recipe, "dtype", compute))
        return load_model(folder, dtype, run.resolved_device, trust_remote_code=run.trust_remote_code)
    if recipe.method == "quanto":
        model = quantize_quanto(folder, recipe, stored, run)
        with quiet():
            _quanto_compute_in(model, torch_dtype(compute))
        return model
    if recipe.method == "bnb":
        model = quantize_bitsandbytes(folder, recipe, stored, run)
        bitsandbytes_compute_in(model, torch_dtype(compute), exact)
        return model
    raise BadInput(
        f"{recipe.short}: only quanto and bnb recipes can be quantized while loading; convert it first"
    )


def quantize_quanto(folder: Path, recipe: Any, dtype: str, run: RunOptions) -> "PreTrainedModel":
    """Loaded in ``dtype``, quantized, frozen. optimum-quanto computes its scales in that dtype."""
    ensure_kernel_environment()
    model = load_model(folder, dtype, run.resolved_device, trust_remote_code=run.trust_remote_code)
    with quiet():
        import torch
        from optimum.quanto import QuantizedModelForCausalLM

        exclude = [] if recipe.lm_head else [_head_name(model)]
        exclude += [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and unpackable(recipe.weights, dtype, module.out_features, module.in_features)
        ]
        wrapped = QuantizedModelForCausalLM.quantize(
            model, weights=QUANTO_TYPES[recipe.weights], exclude=[each for each in exclude if each]
        )
        quantized: PreTrainedModel = wrapped._wrapped
    return quantized


def unpackable(weights: str, dtype: str, outputs: int, inputs: int) -> bool:
    """Whether optimum-quanto 0.2.7 fails at a layer: 4-bit weights in groups of 128 with bfloat16 scales are
    put into the layout of a kernel that takes outputs 16 at a time, when they are made and again when they
    are loaded."""
    return (
        weights == "int4" and dtype == "bfloat16" and inputs > 128 and inputs % 128 == 0 and outputs % 16 != 0
    )


def _quanto_compute_in(model: "PreTrainedModel", dtype: Any) -> None:
    """Cast scales and unquantized parameters; the integers stay. The result equals a saved model loaded that
    way."""
    import torch

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != dtype and parameter.dtype.is_floating_point:
                setattr(module, name, torch.nn.Parameter(quanto_in(parameter, dtype), requires_grad=False))


def quanto_in(parameter: Any, dtype: Any) -> Any:
    """A floating parameter in ``dtype``: of a quantized one the scales are cast, the integers stay."""
    from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

    w: Any = parameter
    if isinstance(w, WeightQBytesTensor):
        return WeightQBytesTensor(w.qtype, w.axis, w.size(), w.stride(), w._data, w._scale.to(dtype), None)
    if isinstance(w, WeightQBitsTensor):
        # The bfloat16 kernel's own layout is undone as it is for saving.
        w = w if type(w) is WeightQBitsTensor else w.weight_qbits_tensor()
        shift = w._shift.to(dtype) if w._shift.is_floating_point() else w._shift
        return WeightQBitsTensor(
            w.qtype, w.axis, w._group_size, w.size(), w.stride(), w._data, w._scale.to(dtype), shift
        )
    return parameter.data.to(dtype)


def _head_name(model: "PreTrainedModel") -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def quantize_bitsandbytes(folder: Path, recipe: Any, dtype: str, run: RunOptions) -> "PreTrainedModel":
    """Quantized while it loads, never run: its first forward pass on a CPU may repack the weights. Layers
    whose weight the model's own code uses directly are not quantized."""
    direct = sorted(linear_uses(folder, trust_remote_code=run.trust_remote_code).direct)
    with quiet():
        from transformers import BitsAndBytesConfig

        if recipe.weights == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=recipe.threshold)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=recipe.weights,
                bnb_4bit_use_double_quant=recipe.double_quant,
                bnb_4bit_compute_dtype=torch_dtype(dtype),
            )
        if direct:  # if any are given, transformers no longer skips the output layer by itself
            empty = model_without_weights(folder, dtype, trust_remote_code=run.trust_remote_code)
            config.llm_int8_skip_modules = [*direct, *filter(None, [_head_name(empty)])]
    device = run.resolved_device
    return load_model(
        folder,
        dtype,
        device,
        trust_remote_code=run.trust_remote_code,
        quantization_config=config,
        device_map={"": device},
    )
