"""optimum-quanto: weights rounded to nearest, without calibration; int8 and float8 by row, int4 and int2 in
groups.

The folder is what optimum-quanto's QuantizedModelForCausalLM saves and reloads: a state dict with each
quantized weight flattened into ``_data``, ``_scale`` and ``_shift``, and ``quanto_qmap.json``, which names
the layers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.dtypes import dense
from quantize.engines.base import Computed, Conversion
from quantize.methods.base import Method
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from quantize.hf.names import Layers

GROUP = 128


class QuantoRecipe(Recipe):
    """``lm_head``: quantize the output layer too (a tied one then stops being tied and is stored a second
    time)."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        f"quanto-{w}": {"weights": w} for w in ("int8", "int4", "int2", "float8")
    }

    method: Literal["quanto"] = "quanto"
    weights: Literal["int8", "int4", "int2", "float8"] = "int8"
    lm_head: bool = False


class Quanto(Method):
    recipe_class: ClassVar[type[Recipe]] = QuantoRecipe
    summary: ClassVar[str] = (
        "optimum-quanto: rounded to nearest, no calibration; saved and reloadable, or quantized while loading"
    )
    needs: ClassVar[tuple[tuple[str, str], ...]] = (("optimum-quanto", "optimum.quanto"), ("ninja", "ninja"))
    extra: ClassVar[str] = "quanto"
    loads_in: ClassVar[tuple[str, ...]] = ("optimum-quanto",)

    def check(self, checkpoint: Checkpoint, recipe: QuantoRecipe) -> None:
        from quantize.errors import Unsupported

        if not self.expected(checkpoint, recipe):
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear "
                "layers for optimum-quanto to quantize (its projections are another "
                "kind of layer, or of a shape it cannot pack); GGUF recipes may work"
            )

    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: QuantoRecipe,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        from quantize.checkpoint.tensors import write_config, write_state
        from quantize.hf.load import QUANTO_MAP
        from quantize.hf.names import find_layers, kept_notes
        from quantize.hf.on_the_fly import quantize_quanto
        from quantize.quiet import quiet

        checkpoint.check_finite()
        layers = find_layers(checkpoint)
        dtype = _scales_dtype(checkpoint)
        with materialised(checkpoint, run.scratch) as folder:
            model = quantize_quanto(folder, recipe, dtype, run)
        with quiet():
            from optimum.quanto.quantize import quantization_map

            mapping = quantization_map(model)
            computed = _computed(model, layers, head_apart=layers.tied and layers.head in mapping)
            state = model.state_dict()
        config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"} | {
            "dtype": dtype
        }
        head_quantized = layers.head in mapping
        if layers.tied and head_quantized:
            config["tie_word_embeddings"] = False
        elif layers.tied:
            state.pop(f"{layers.head}.weight", None)
        weight_bytes = write_state(stage, state)
        write_config(stage, config)
        (stage / QUANTO_MAP).write_text(json.dumps(mapping, indent=4) + "\n", encoding="utf-8")
        notes = kept_notes(
            checkpoint,
            {layers.tensor(name) for name in mapping if name != layers.head or not layers.tied},
            layers,
            "optimum-quanto",
            {layers.tensor(name): _WHY_UNPACKABLE for name in _unpackable(checkpoint, recipe)},
        )
        notes += [
            Note(
                tensor=layers.tensor(name),
                what="its inputs are not contiguous",
                why="optimum-quanto 0.2.7's bfloat16 kernels for CPUs "
                "refuse it; correct on GPUs and in this program",
            )
            for name in sorted(layers.uses.strided & set(mapping))
            if recipe.weights in ("int8", "int4")
        ]
        if recipe.weights in ("int4", "int2"):
            notes += [
                note for name in mapping if (note := group_note(layers.tensor(name), layers.linear[name][1]))
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
            engine=_engine(),
            libraries=("optimum-quanto", "transformers", "torch"),
            notes=notes,
            details={"scales_dtype": dtype},
            computed=computed,
        )

    def quantized(self, stage: Path, recipe: QuantoRecipe) -> dict[str, str]:
        from quantize.checkpoint.tensors import StoredTensors

        stored = StoredTensors(stage)
        found = {}
        for name, info in stored.info.items():
            base = name.removesuffix("._data")
            if base == name or f"{base}._scale" in stored:
                if base != name:
                    found[base] = {"I8": "int8", "F8_E4M3": "float8"}.get(info.dtype, info.dtype)
                continue
            base = base.removesuffix("._data")
            if f"{base}._shift" in stored:
                groups, width = stored.info[f"{base}._scale"].parameters, info.shape[1]
                fields = (
                    groups / info.shape[0]
                )  # groups, packed `fields` to a byte, the last byte perhaps not full
                found[base] = f"int{4 if fields <= 2 else 2} g{width}"
        return found

    def expected(self, checkpoint: Checkpoint, recipe: QuantoRecipe) -> set[str]:
        from quantize.hf.names import find_layers

        layers = find_layers(checkpoint)
        names = (
            set(layers.linear)
            - _unpackable(checkpoint, recipe)
            - (set() if recipe.lm_head else {layers.head})
        )
        return {f"{name}.weight" for name in names}

    def fits(self, recipe: QuantoRecipe, kind: str) -> bool:
        return kind.split()[0] == recipe.weights

    def dequantize(
        self, stage: Path, recipe: QuantoRecipe, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Besides the source's weights ``lm_head.weight``, where a tied one was quantized and so stored
        apart."""
        from quantize.checkpoint.tensors import StoredTensors
        from quantize.hf.names import find_layers
        from quantize.numerics.quanto import dequantize_groups, dequantize_rows

        stored, layers = StoredTensors(stage), find_layers(checkpoint)
        for name, source in layers.source.items():
            apart = layers.tied and name == f"{layers.head}.weight"
            if f"{name}._data" in stored:
                values = dequantize_rows(stored.raw(f"{name}._data"), stored.float32(f"{name}._scale"))
            elif f"{name}._data._data" in stored:
                integer = stored.info[f"{name}._shift"].dtype.startswith(("I", "U"))
                shift = stored.raw(f"{name}._shift") if integer else stored.float32(f"{name}._shift")
                values = dequantize_groups(
                    stored.raw(f"{name}._data._data"),
                    stored.float32(f"{name}._scale"),
                    shift,
                    4 if recipe.weights == "int4" else 2,
                    layers.linear[name.removesuffix(".weight")],
                )
            elif apart:
                continue
            else:
                values = stored.float32(name)
            yield (name if apart else source), values


def _computed(model: "PreTrainedModel", layers: "Layers", head_apart: bool) -> Computed:
    """The library's own dequantization of every weight, in float32: its scales are stored in less and exact
    there."""
    import torch
    from optimum.quanto import QTensor

    from quantize.hf.on_the_fly import quanto_in

    computed = Computed()
    head = f"{layers.head}.weight"
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = layers.source.get(name)
        if source is None or (layers.tied and name == head and not head_apart):
            continue
        with torch.no_grad():
            exact = quanto_in(parameter, torch.float32)
            values = (exact.dequantize() if isinstance(exact, QTensor) else exact).float().cpu().numpy()
        computed.add(name if name == head and head_apart else source, values)
    return computed


_WHY_UNPACKABLE = (
    "optimum-quanto 0.2.7 packs 4-bit weights with bfloat16 "
    "scales 16 outputs at a time; use a float32 or float16 source"
)


def _scales_dtype(checkpoint: Checkpoint) -> str:
    return dense(checkpoint.dtype, "bfloat16")


def _unpackable(checkpoint: Checkpoint, recipe: QuantoRecipe) -> set[str]:
    from quantize.hf.names import find_layers
    from quantize.hf.on_the_fly import unpackable

    dtype = _scales_dtype(checkpoint)
    return {
        name
        for name, shape in find_layers(checkpoint).linear.items()
        if unpackable(recipe.weights, dtype, *shape)
    }


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


def _engine() -> str:
    from importlib import metadata

    return f"optimum-quanto {metadata.version('optimum-quanto')}"
