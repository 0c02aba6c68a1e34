"""optimum-quanto: weights rounded to nearest, without calibration; int8 and float8 by row, int4 and int2 in
groups. Quantized in memory, then saved, or run at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.checkpoint.tensors import write_config, write_state
from quantize.dtypes import dense
from quantize.engines.base import Computed, Conversion, Engine
from quantize.engines.in_memory import took
from quantize.formats.quanto import GROUP
from quantize.hf.extensions import ensure_kernel_environment
from quantize.hf.load import QUANTO_MAP, head_name, load_model
from quantize.hf.loaded import (
    ROUTER,
    Loaded,
    beside_notes,
    experts_note,
    keep_dtypes,
    loaded,
    singly_noted,
    sources_again,
)
from quantize.hf.names import kept_notes, router_layers, untied
from quantize.hf.wrappers import beside_text
from quantize.quiet import quiet
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QTYPES = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8_e4m3fn"}
_WHY_UNPACKABLE = (
    "optimum-quanto 0.2.7 packs 4-bit weights with bfloat16 "
    "scales 16 outputs at a time; use a float32 or float16 source"
)


class OptimumQuanto(Engine):
    distribution: ClassVar[str] = "optimum-quanto"
    needs: ClassVar[tuple[tuple[str, str], ...]] = (("optimum-quanto", "optimum.quanto"), ("ninja", "ninja"))
    extra: ClassVar[str] = "quanto"
    libraries: ClassVar[tuple[str, ...]] = ("optimum-quanto", "transformers", "torch")


QUANTO = OptimumQuanto()


def quantizable(checkpoint: Checkpoint, weights: str, lm_head: bool) -> frozenset[str]:
    """Names of the weights that the library quantizes, the head's in the model's own words."""
    layers = loaded(checkpoint).layers
    names = (
        set(layers.linear) - _unpackable_layers(checkpoint, weights) - (set() if lm_head else {layers.head})
    )
    return frozenset(f"{name}.weight" for name in names)


def write(checkpoint: Checkpoint, stage: Path, run: RunOptions, weights: str, lm_head: bool) -> Conversion:
    """What the library's own save_pretrained would, under the source's config."""
    checkpoint.check_finite()
    found = loaded(checkpoint)
    layers = found.layers
    dtype = _scales_dtype(checkpoint)
    with materialised(checkpoint, run.scratch) as folder:
        computed = Computed()
        model = quantize_in_memory(
            folder, weights, lm_head, dtype, run, lambda model: took(computed, model, layers, checkpoint)
        )
    keep_dtypes(model, checkpoint, found.beside())
    with quiet():
        from optimum.quanto.quantize import quantization_map

        mapping = quantization_map(model)
        _add_computed(computed, model, found, checkpoint, head_apart=layers.tied and layers.head in mapping)
        state = model.state_dict()
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"} | {
        "dtype": dtype
    }
    head_quantized = layers.head in mapping
    if layers.tied and head_quantized:
        config = untied(config)
    elif layers.tied:
        state.pop(f"{layers.head}.weight", None)
    weight_bytes = write_state(stage, state)
    write_config(stage, config)
    (stage / QUANTO_MAP).write_text(json.dumps(mapping, indent=4) + "\n", encoding="utf-8")
    notes = kept_notes(
        singly_noted(checkpoint),
        found.sources({name for name in mapping if name != layers.head or not layers.tied}),
        layers,
        "optimum-quanto",
        _reasons(found, _unpackable_layers(checkpoint, weights)),
    )
    notes += filter(None, [experts_note(checkpoint, "optimum-quanto")])
    notes += beside_notes(checkpoint)
    notes += [
        Note(
            tensor=found.tensor(name),
            what="its inputs are not contiguous",
            why="optimum-quanto 0.2.7's bfloat16 kernels for CPUs "
            "refuse it; correct on GPUs and in this program",
        )
        for name in sorted(layers.uses.strided & set(mapping))
        if weights in ("int8", "int4")
    ]
    if weights in ("int4", "int2"):
        notes += [
            note for name in mapping if (note := group_note(found.tensor(name), layers.linear[name][1]))
        ]
    if layers.tied and head_quantized:
        notes.append(
            Note(
                tensor=f"{layers.head}.weight",
                what="stored a second time, quantized",
                why="lm_head=true, and the embedding it was tied to is not quantized",
            )
        )
    return Conversion(
        weight_bytes,
        engine=QUANTO.label,
        libraries=QUANTO.libraries,
        notes=notes,
        details={"scales_dtype": dtype},
        computed=computed,
    )


def quantize_in_memory(
    folder: Path,
    weights: str,
    lm_head: bool,
    dtype: str,
    run: RunOptions,
    taking: Callable[["PreTrainedModel"], None] = lambda model: None,
) -> "PreTrainedModel":
    """Loaded in ``dtype``, quantized, frozen. optimum-quanto computes its scales in that dtype. ``taking``
    gets the model before anything is quantized."""
    ensure_kernel_environment()
    model = load_model(folder, dtype, run.resolved_device, trust_remote_code=run.trust_remote_code)
    taking(model)
    with quiet():
        import torch
        from optimum.quanto import QuantizedModelForCausalLM

        routers = router_layers(model)
        exclude = [] if lm_head else [head_name(model)]
        exclude += [f"{name}.*" for name in beside_text(model)]
        exclude += beside_text(model)
        exclude += [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and (name in routers or unpackable(weights, dtype, module.out_features, module.in_features))
        ]
        wrapped = QuantizedModelForCausalLM.quantize(
            model, weights=QTYPES[weights], exclude=[each for each in exclude if each]
        )
        quantized: PreTrainedModel = wrapped._wrapped
    return quantized


def unpackable(weights: str, dtype: str, outputs: int, inputs: int) -> bool:
    """Whether optimum-quanto 0.2.7 fails at a layer: 4-bit weights in groups of 128 with bfloat16 scales are
    put into the layout of a kernel that takes outputs 16 at a time, when they are made and again when they
    are loaded. A single output of 4 or 2 bits is packed so that its bits cannot be told afterwards."""
    if outputs == 1:
        return weights in ("int4", "int2")
    return (
        weights == "int4" and dtype == "bfloat16" and inputs > 128 and inputs % 128 == 0 and outputs % 16 != 0
    )


def compute_in(model: "PreTrainedModel", dtype: Any) -> None:
    """Cast scales and unquantized parameters; the integers stay. The result is what a saved model gives when
    it is loaded so."""
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


def _add_computed(
    computed: Computed, model: "PreTrainedModel", found: Loaded, checkpoint: Checkpoint, head_apart: bool
) -> None:
    """The library's own dequantization of every weight, in float32: its scales are stored in less and exact
    there."""
    import torch
    from optimum.quanto import QTensor

    parameters = dict(model.named_parameters(remove_duplicate=False))

    def values(name: str) -> np.ndarray:
        with torch.no_grad():
            exact = quanto_in(parameters[name], torch.float32)
            array: np.ndarray = (
                (exact.dequantize() if isinstance(exact, QTensor) else exact).float().cpu().numpy()
            )
        return array

    head = f"{found.layers.head}.weight"
    parts = {name: part for name, part in found.parts.items() if name in parameters}
    if found.layers.tied:
        parts.pop(head, None)
    if head_apart:
        computed.add(head, values(head))
    for source, array in sources_again(parts, checkpoint, values):
        computed.add(source, array)


def _scales_dtype(checkpoint: Checkpoint) -> str:
    return dense(checkpoint.dtype, "bfloat16")


def _reasons(found: Loaded, unpackable_layers: set[str]) -> dict[str, str]:
    """Of each tensor that is kept though it is a linear layer's."""
    single = {name for name in unpackable_layers if found.layers.linear[name][0] == 1}
    return {
        **dict.fromkeys(found.sources(unpackable_layers - single), _WHY_UNPACKABLE),
        **dict.fromkeys(found.sources(single), "with a single output there is nothing to gain"),
        **dict.fromkeys(found.routers, ROUTER),
    }


def _unpackable_layers(checkpoint: Checkpoint, weights: str) -> set[str]:
    dtype = _scales_dtype(checkpoint)
    linear = loaded(checkpoint).layers.linear.items()
    return {name for name, shape in linear if unpackable(weights, dtype, *shape)}


def group_note(name: str, width: int) -> Note | None:
    """What optimum-quanto does, without a word, to a layer of ``width`` inputs that groups of 128 do not
    suit."""
    if width > GROUP and width % GROUP == 0:
        return None
    if width <= GROUP:
        return Note(
            tensor=name, what="one scale per row instead of groups of 128", why=f"only {width} inputs"
        )
    size = next((size for size in (96, 64, 32) if width % size == 0), None)
    if size is None:
        return Note(
            tensor=name,
            what="one scale per row instead of groups of 128",
            why=f"{width} inputs are not a multiple of 128, 96, 64 or 32",
        )
    return Note(
        tensor=name, what=f"groups of {size} instead of 128", why=f"{width} inputs are not a multiple of 128"
    )
