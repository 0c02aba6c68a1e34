"""AutoAWQ's GEMM format: codes of 4 bits and zero points packed along the outputs, scales in half
precision."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.formats.folder import Entry
from quantize.formats.packed import OWN, PackedFormat, tensors_of
from quantize.hf.matrices import Linear
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.packing import dequantize_awq, pack_awq, unpack_awq

BITS = 4
#: model type -> (activation, layer before it), where transformers takes factors of the activation from
#: the file, as AutoAWQ wrote them: here they are ones
SCALED_ACTIVATIONS = {
    "bloom": ("gelu_impl", "dense_h_to_4h"), "gpt_neox": ("act", "dense_h_to_4h"), "gptj": ("act", "fc_in"),
    "mpt": ("act", "up_proj"), "starcoder2": ("act", "c_fc"),
}  # fmt: skip
#: outputs to a word
PACKED_OUTPUTS = 8


@dataclass(frozen=True)
class AwqFormat(PackedFormat):
    storage: ClassVar[str] = "awq"
    hub_tag: ClassVar[str] = "awq"
    along_inputs: ClassVar[bool] = False
    replaced: ClassVar[tuple[str, ...]] = ("Linear",)
    moves_scales: ClassVar[bool] = True

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric)

    @property
    def kl_tolerance(self) -> float:
        """The kernels round scales and activations to bfloat16 or float16."""
        return 1e-3

    def activation_types(self, stage: Path) -> dict[str, str] | None:
        """The kernels' inputs and outputs are 16-bit floats."""
        if self.opener(stage) == OWN:
            return None
        return dict.fromkeys(self.quantized(stage), "bf16_io")

    def packed(self, codes: Codes, grid: Grid) -> dict[str, np.ndarray]:
        return {
            "qweight": pack_awq(np.ascontiguousarray(codes.codes.cpu().numpy().T)),
            "qzeros": pack_awq(np.ascontiguousarray(codes.zeros.cpu().numpy().T.astype(np.uint8))),
            "scales": np.ascontiguousarray(codes.scales.cpu().numpy().T.astype(np.float16)),
        }

    def unpacked(self, tensors: dict[str, np.ndarray], grid: Grid) -> np.ndarray:
        qweight, qzeros, scales = (tensors[name] for name in ("qweight", "qzeros", "scales"))
        return dequantize_awq(qweight, qzeros, scales, grid.group_size)

    def codes_of(self, stored: Checkpoint, linear: Linear) -> tuple[np.ndarray, ...]:
        tensors, size = tensors_of(stored, linear.name), self.grid_of(linear).group_size
        groups = np.arange(linear.inputs) // (size if size > 0 else linear.inputs)
        return unpack_awq(tensors["qweight"]), unpack_awq(tensors["qzeros"]), tensors["scales"], groups

    def matrix_entries(self, linear: Linear) -> Iterator[Entry]:
        outputs, inputs, groups = linear.outputs, linear.inputs, self.groups(linear)
        yield f"{linear.name}.qweight", "I32", (inputs, outputs * BITS // 32)
        yield f"{linear.name}.qzeros", "I32", (groups, outputs * BITS // 32)
        yield f"{linear.name}.scales", "F16", (groups, outputs)

    def extras(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        activation, before = SCALED_ACTIVATIONS.get(checkpoint.model_type, ("", ""))
        layers = (linear for linear in self.linears if linear.name.rpartition(".")[2] == before)
        return {
            f"{linear.name.rpartition('.')[0]}.{activation}.scales": np.ones(linear.outputs, np.float16)
            for linear in layers
        }

    def own_config(self) -> dict[str, Any]:
        """In AutoAWQ's words. Loaders take every linear layer but those that it names, and the head."""
        return {
            "quant_method": "awq",
            "version": "gemm",
            "format": "gemm",
            "bits": self.bits,
            "group_size": self.group_size,
            "zero_point": not self.symmetric,
            "sym": self.symmetric,
            "desc_act": False,
            "modules_to_not_convert": [*self.left(), *self.beside()] or None,
        }
