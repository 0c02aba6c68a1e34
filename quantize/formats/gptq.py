"""AutoGPTQ's format, version 1: codes packed along the inputs, zero points along the outputs, scales in half
precision, the group of each input."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.formats.folder import CONFIG_EXTRA_BYTES, Entry, FolderFormat
from quantize.formats.packed import packed_layers, stored_tensors
from quantize.numerics.packing import dequantize_gptq

#: rows that whole 32-bit words of codes need
PACKED_ROWS = {2: 16, 3: 32, 4: 8, 8: 4}


@dataclass(frozen=True)
class GptqFormat(FolderFormat):
    """``group_size`` -1: one scale for each output."""

    bits: int
    group_size: int

    storage: ClassVar[str] = "gptq"
    hub_tag: ClassVar[str] = "gptq"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang", "gptqmodel")
    config_bytes: ClassVar[int] = 2 * CONFIG_EXTRA_BYTES  # quantize_config.json too

    @property
    def kl_tolerance(self) -> float:
        """The 4-bit kernel for CPUs rounds scales and activations to bfloat16 (2e-5 seen); the others compute
        in the dtype of the model (4e-8 seen in float32)."""
        return 1e-3 if self.bits == 4 else 1e-5

    def activation_types(self, stage: Path) -> dict[str, str] | None:
        """The 4-bit kernel for CPUs has bfloat16 inputs and outputs; the other widths compute in the dtype of
        the model."""
        return dict.fromkeys(self.quantized(stage), "bf16_io") if self.bits == 4 else None

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        info = checkpoint.tensors[name]
        if not quantized:
            yield name, info.dtype, info.shape
            return
        outputs, inputs = info.shape
        groups = ceil(inputs / self.group_size) if self.group_size > 0 else 1
        base = name.removesuffix(".weight")
        yield f"{base}.g_idx", "I32", (inputs,)
        yield f"{base}.qweight", "I32", (inputs * self.bits // 32, outputs)
        yield f"{base}.qzeros", "I32", (groups, outputs * self.bits // 32)
        yield f"{base}.scales", "F16", (groups, outputs)

    def quantized(self, stage: Path) -> dict[str, str]:
        tensors = dict(stored_tensors(stage).tensors)
        group = f" g{self.group_size}" if self.group_size > 0 else " per channel"
        found = {}
        for base, qweight in packed_layers(tensors, self.bits, along_inputs=True).items():
            inputs, index = qweight.shape[0] * 32 // self.bits, tensors.get(f"{base}.g_idx")
            groups = inputs // self.group_size if self.group_size > 0 else 1
            if tensors[f"{base}.scales"].shape[0] == groups and (index is None or index.shape == (inputs,)):
                found[f"{base}.weight"] = f"gptq-int{self.bits}{group}"
        return found

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        stored = stored_tensors(stage)
        for name in checkpoint.tensors:
            if name in stored.tensors:
                yield name, stored.read_float32(name)
                continue
            base = name.removesuffix(".weight")
            index = stored.read(f"{base}.g_idx") if f"{base}.g_idx" in stored.tensors else None
            scales = stored.read_float32(f"{base}.scales")
            qweight, qzeros = stored.read(f"{base}.qweight"), stored.read(f"{base}.qzeros")
            yield name, dequantize_gptq(qweight, qzeros, scales, index, self.bits, self.group_size)
