"""What optimum-quanto's QuantizedModelForCausalLM saves and reloads: a state dict with each quantized weight
flattened into ``_data``, ``_scale`` and ``_shift``, and ``quanto_qmap.json``, which names the layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import StoredTensors
from quantize.formats.folder import Entry, FolderFormat, kept_entry, loaded_dtype
from quantize.hf.loaded import as_loaded, loaded, sources_again
from quantize.numerics.quanto import dequantize_groups, dequantize_rows

GROUP = 128


@dataclass(frozen=True)
class QuantoFormat(FolderFormat):
    """``weights``: int8 and float8 have a scale for each row, int4 and int2 for each group. ``keeps``:
    tensors that keep the source's dtype."""

    weights: str
    keeps: frozenset[str] = frozenset()

    opened_by: ClassVar[tuple[str, str]] = ("optimum.quanto", "QuantizedModelForCausalLM")
    opening_advice: ClassVar[str] = (
        "transformers alone ignores the quantized weights. With "
        "`pip install optimum-quanto transformers accelerate`:"
    )
    hub_library: ClassVar[str] = "optimum-quanto"
    storage: ClassVar[str] = "quanto"
    hub_tag: ClassVar[str] = "quanto"
    loads_in: ClassVar[tuple[str, ...]] = ("optimum-quanto",)

    def map_bytes(self, expected: frozenset[str]) -> int:
        return sum(len(name) + 60 for name in expected)  # quanto_qmap.json

    def output_bytes(self, checkpoint: Checkpoint, expected: frozenset[str]) -> int:
        return super().output_bytes(as_loaded(checkpoint, expected, source_names=False), expected)

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        """Codes, scales (and shifts for groups) in the model's dtype, two activation scales a layer."""
        info, dtype = checkpoint.tensors[name], loaded_dtype(checkpoint)
        if not quantized:
            yield kept_entry(checkpoint, name, dtype, self.keeps)
            return
        outputs, inputs = info.shape
        base = name.removesuffix(".weight")
        yield f"{base}.input_scale", dtype, ()
        yield f"{base}.output_scale", dtype, ()
        if self.weights in ("int8", "float8"):
            yield f"{name}._data", "I8" if self.weights == "int8" else "F8_E4M3", info.shape
            yield f"{name}._scale", dtype, (outputs, 1)
            return
        width = next((size for size in (128, 96, 64, 32) if inputs > 128 and inputs % size == 0), inputs)
        rows, fields = outputs * inputs // width, 2 if self.weights == "int4" else 4
        yield f"{name}._data._data", "U8", (ceil(rows / fields), width)
        yield f"{name}._scale", dtype, (rows, 1)
        yield f"{name}._shift", dtype, (rows, 1)

    def quantized(self, stage: Path) -> dict[str, str]:
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
                # groups, packed `fields` to a byte, the last byte perhaps not full
                fields = groups / info.shape[0]
                found[base] = f"int{4 if fields <= 2 else 2} g{width}"
        return found

    def fits(self, kind: str) -> bool:
        return kind.split()[0] == self.weights

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Besides the source's weights ``lm_head.weight``, where a tied one was quantized and so stored
        apart."""
        stored, found = StoredTensors(stage), loaded(checkpoint)
        layers, parts = found.layers, dict(found.parts)

        def values(name: str) -> np.ndarray:
            if f"{name}._data" in stored:
                return dequantize_rows(stored.raw(f"{name}._data"), stored.float32(f"{name}._scale"))
            if f"{name}._data._data" not in stored:
                return stored.float32(name)
            integer = stored.info[f"{name}._shift"].dtype.startswith(("I", "U"))
            return dequantize_groups(
                stored.raw(f"{name}._data._data"),
                stored.float32(f"{name}._scale"),
                stored.raw(f"{name}._shift") if integer else stored.float32(f"{name}._shift"),
                4 if self.weights == "int4" else 2,
                layers.linear[name.removesuffix(".weight")],
            )

        head = f"{layers.head}.weight"
        if layers.tied:
            parts.pop(head, None)
        if layers.tied and (f"{head}._data" in stored or f"{head}._data._data" in stored):
            yield head, values(head)
        yield from sources_again(parts, checkpoint, values)
