"""bitsandbytes as transformers saves it: 8-bit rows with one scale each, or 4-bit blocks of 64 with a scale
of 32 or, doubly quantized, 8 bits."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import StepFailed
from quantize.formats.folder import Entry, FolderFormat, kept_entry, loaded_dtype
from quantize.hf.loaded import as_loaded, loaded, stored_sources
from quantize.numerics.bitsandbytes import (
    CODEBOOKS,
    dequantize_absmax,
    dequantize_blocks,
    dequantize_int8_rows,
    dynamic_map,
)

BLOCK = 64  # weights that share a scale: the default of transformers, which the recipe does not change
STATE = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class BnbFormat(FolderFormat):
    """``weights``: int8, nf4 or fp4; ``double_quant``: the scales of 4-bit blocks are stored in 8 bits.
    ``keeps``: tensors that keep the source's dtype."""

    weights: str
    double_quant: bool = False
    keeps: frozenset[str] = frozenset()

    storage: ClassVar[str] = "bitsandbytes"
    hub_tag: ClassVar[str] = "bitsandbytes"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")

    def output_bytes(self, checkpoint: Checkpoint, expected: frozenset[str]) -> int:
        return super().output_bytes(as_loaded(checkpoint, expected, source_names=True), expected)

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        info = checkpoint.tensors[name]
        if not quantized:
            yield kept_entry(checkpoint, name, loaded_dtype(checkpoint), self.keeps)
            return
        base, size = name.removesuffix(".weight"), info.parameters
        if self.weights == "int8":
            yield name, "I8", info.shape
            yield f"{base}.SCB", "F32", (info.shape[0],)
            yield f"{base}.weight_format", "U8", ()
            return
        blocks = ceil(size / BLOCK)
        yield name, "U8", (ceil(size / 2), 1)
        yield f"{name}.absmax", "U8" if self.double_quant else "F32", (blocks,)
        yield f"{name}.quant_map", "F32", (16,)
        yield f"{name}{STATE}{self.weights}", "U8", (120 if self.double_quant else 80,)
        if self.double_quant:
            yield f"{name}.nested_absmax", "F32", (ceil(blocks / 256),)
            yield f"{name}.nested_quant_map", "F32", (256,)

    def quantized(self, stage: Path) -> dict[str, str]:
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

    def fits(self, kind: str) -> bool:
        return kind == self.weights + (" double" if self.double_quant else "")

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Errors: StepFailed where a folder's own codebook is not the one its type means."""
        stored, found = StoredTensors(stage), loaded(checkpoint)

        def values(name: str) -> np.ndarray:
            kind = next((k for k in ("nf4", "fp4") if f"{name}{STATE}{k}" in stored), None)
            if kind:
                return _read_4bit(stored, name, kind)
            if stored.info[name].dtype == "I8":
                scales = stored.float32(f"{name.removesuffix('weight')}SCB")
                return dequantize_int8_rows(stored.raw(name), scales)
            return stored.float32(name)

        yield from stored_sources(found, checkpoint, stored.__contains__, values)


def _read_4bit(stored: StoredTensors, name: str, kind: str) -> np.ndarray:
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


def _same_map(stored: StoredTensors, name: str, codebook: np.ndarray) -> None:
    if not np.allclose(stored.float32(name), codebook, rtol=0, atol=1e-6):
        raise StepFailed(
            f"{name}: not the codebook of its type; the artifact is "
            "damaged, or made by another bitsandbytes: convert again"
        )
