"""AutoAWQ's GEMM format: codes of 4 bits and zero points packed along the outputs, scales in half
precision."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.formats.folder import CONFIG_EXTRA_BYTES, Entry, FolderFormat
from quantize.formats.packed import packed_layers, stored_tensors
from quantize.numerics.packing import dequantize_awq

BITS = 4


@dataclass(frozen=True)
class AwqFormat(FolderFormat):
    """``group_size`` -1: one scale for each output."""

    group_size: int

    storage: ClassVar[str] = "awq"
    hub_tag: ClassVar[str] = "awq"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang", "gptqmodel")
    config_bytes: ClassVar[int] = 2 * CONFIG_EXTRA_BYTES  # quantize_config.json too
    moves_scales: ClassVar[bool] = True

    @property
    def kl_tolerance(self) -> float:
        """The kernels round scales and activations to bfloat16 or float16."""
        return 1e-3

    def activation_types(self, stage: Path) -> dict[str, str]:
        """The kernels' inputs and outputs are 16-bit floats."""
        return dict.fromkeys(self.quantized(stage), "bf16_io")

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        info = checkpoint.tensors[name]
        if not quantized:
            yield name, info.dtype, info.shape
            return
        outputs, inputs = info.shape
        groups = ceil(inputs / self.group_size) if self.group_size > 0 else 1
        base = name.removesuffix(".weight")
        yield f"{base}.qweight", "I32", (inputs, outputs * BITS // 32)
        yield f"{base}.qzeros", "I32", (groups, outputs * BITS // 32)
        yield f"{base}.scales", "F16", (groups, outputs)

    def quantized(self, stage: Path) -> dict[str, str]:
        tensors = dict(stored_tensors(stage).tensors)
        group = f" g{self.group_size}" if self.group_size > 0 else " per channel"
        return {
            f"{base}.weight": f"awq-int{BITS}{group}"
            for base, qweight in packed_layers(tensors, BITS, along_inputs=False).items()
            if tensors[f"{base}.scales"].shape[0]
            == (qweight.shape[0] // self.group_size if self.group_size > 0 else 1)
        }

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Weights as stored: scales that AWQ moved from a layer's inputs into the norm or layer before it
        stay there. So single tensors differ from the source's by more than rounding; the model they make up
        does not."""
        stored = stored_tensors(stage)
        for name in checkpoint.tensors:
            if name in stored.tensors:
                yield name, stored.read_float32(name)
                continue
            base = name.removesuffix(".weight")
            scales = stored.read_float32(f"{base}.scales")
            qweight, qzeros = stored.read(f"{base}.qweight"), stored.read(f"{base}.qzeros")
            yield name, dequantize_awq(qweight, qzeros, scales, self.group_size)
