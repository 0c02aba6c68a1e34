"""AutoGPTQ's format, version 1: codes packed along the inputs, zero points along the outputs, scales in half
precision, the group of each input."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.formats.folder import Entry
from quantize.formats.packed import OWN, PackedFormat, relative, tensors_of
from quantize.hf.matrices import Linear
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.packing import dequantize_gptq, gptq_zeros, pack_bits, unpack_bits

#: inputs and outputs that whole 32-bit words of codes need
PACKED_ROWS = {2: 16, 3: 32, 4: 8, 8: 4}
#: lists of decoder layers that optimum looks for, in this order; another must be named
BLOCKS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")

#: what vLLM joins, by its names
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class GptqFormat(PackedFormat):
    """``version``: what is read; 2 stores zero points as they are meant, 1 less one. 1 is what is written."""

    version: int = 1

    storage: ClassVar[str] = "gptq"
    hub_tag: ClassVar[str] = "gptq"
    along_inputs: ClassVar[bool] = True
    replaced: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D")

    @property
    def less(self) -> int:
        """What is stored of a zero point is that much less than it is."""
        return 1 if self.version == 1 else 0

    @property
    def grid(self) -> Grid:
        """Zero points are stored less one: 0 cannot be said."""
        return Grid(self.bits, self.group_size, self.symmetric, lowest_zero=1)

    @property
    def kl_tolerance(self) -> float:
        """The 4-bit kernel for CPUs rounds scales and activations to bfloat16 (2e-5 seen); the others compute
        in the dtype of the model (4e-8 seen in float32)."""
        return 1e-3 if self._rounds else 1e-5

    @property
    def _rounds(self) -> bool:
        """Whether the 4-bit kernel for CPUs is what computes: it has bfloat16 inputs and outputs; the others
        compute in the dtype of the model."""
        return self.bits == 4 and self.as_transformers_reads

    def activation_types(self, stage: Path) -> dict[str, str] | None:
        if not self._rounds or self.opener(stage) == OWN:
            return None
        return dict.fromkeys(self.quantized(stage), "bf16_io")

    def packed(self, codes: Codes, grid: Grid) -> dict[str, np.ndarray]:
        """Errors: ValueError where a zero point is 0."""
        inputs, groups = codes.codes.shape[1], codes.scales.shape[1]
        zeros = codes.zeros.cpu().numpy() - 1
        return {
            "qweight": pack_bits(np.ascontiguousarray(codes.codes.cpu().numpy().T), grid.bits),
            "qzeros": np.ascontiguousarray(pack_bits(zeros, grid.bits).T),
            "scales": np.ascontiguousarray(codes.scales.cpu().numpy().T.astype(np.float16)),
            "g_idx": (np.arange(inputs) // (inputs // groups)).astype(np.int32),
        }

    def unpacked(self, tensors: dict[str, np.ndarray], grid: Grid) -> np.ndarray:
        qweight, qzeros, scales = (tensors[name] for name in ("qweight", "qzeros", "scales"))
        return dequantize_gptq(
            qweight, qzeros, scales, tensors.get("g_idx"), grid.bits, grid.group_size, self.less
        )

    def codes_of(self, stored: Checkpoint, linear: Linear) -> tuple[np.ndarray, ...]:
        tensors, grid = tensors_of(stored, linear.name), self.grid_of(linear)
        codes = unpack_bits(tensors["qweight"], grid.bits)
        size = grid.group_size if grid.group_size > 0 else linear.inputs
        groups = tensors.get("g_idx", np.arange(linear.inputs) // size)
        return codes, gptq_zeros(tensors["qzeros"], grid.bits, self.less), tensors["scales"], groups

    def matrix_entries(self, linear: Linear) -> Iterator[Entry]:
        outputs, inputs, groups = linear.outputs, linear.inputs, self.groups(linear)
        bits = self.grid_of(linear).bits
        yield f"{linear.name}.g_idx", "I32", (inputs,)
        yield f"{linear.name}.qweight", "I32", (inputs * bits // 32, outputs)
        yield f"{linear.name}.qzeros", "I32", (groups, outputs * bits // 32)
        yield f"{linear.name}.scales", "F16", (groups, outputs)

    def own_config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "format": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": False,
            "sym": self.symmetric,
            **self._which(),
        }

    def _which(self) -> dict[str, Any]:
        """Which linear layers are quantized, where that is not all of those in the layers that loaders look
        at: ``modules_in_block_to_quantize`` for transformers and vLLM, ``dynamic`` for GPTQModel and vLLM;
        that also says which are quantized otherwise than the rest."""
        found = self._places()
        if self.special:
            found["dynamic"] = {**found.get("dynamic", {}), **self._otherwise()}
        return found

    def _otherwise(self) -> dict[str, dict[str, Any]]:
        """Rules of ``dynamic`` for the matrices of other grids: by the end of the name where that tells them
        in every layer, else by the whole name."""
        assert self.decoder is not None
        rules: dict[str, dict[str, Any]] = {}
        ends: dict[str, set[Grid]] = {}
        layer = re.compile(rf"(?:{'|'.join(re.escape(name) for name in self.decoder.layer_names)})\.(.+)")
        grids = [
            (name, self.grid_of(linear))
            for linear in self.linears
            for name in sorted({linear.name, linear.layer if linear.module else linear.name})
        ]
        grids += self._joined()
        for name, grid in grids:
            match = layer.fullmatch(name)
            ends.setdefault(match[1] if match else name, set()).add(grid)
        for name, grid in grids:
            match = layer.fullmatch(name)
            alike = match is not None and len(ends[match[1]]) == 1
            rule = rf".*\.{re.escape(match[1])}$" if match and alike else f"{re.escape(name)}$"
            if grid != self.grid:
                said = {"bits": grid.bits, "group_size": grid.group_size, "sym": grid.symmetric}
                rules[f"+:{rule}"] = said
        return rules

    def _joined(self) -> list[tuple[str, Grid]]:
        """Matrices of one grid that vLLM computes as one, by its name, which its rules must fit; of other
        grids it cannot."""
        grids = {linear.name: self.grid_of(linear) for linear in self.linears if linear.module}
        found = []
        for joined, parts in JOINED.items():
            for name in grids:
                stem, _, part = name.rpartition(".")
                members = {grids.get(f"{stem}.{each}") for each in parts}
                if part == parts[0] and len(members) == 1:
                    found.append((f"{stem}.{joined}", grids[name]))
        return found

    def _places(self) -> dict[str, Any]:
        if self.decoder is None or not self.decoder.layer_names:
            return {}
        block = self.decoder.layer_names[0].rpartition(".")[0]
        found: dict[str, Any] = {} if block in BLOCKS else {"block_name_to_quantize": block}
        towers = [rf"(.*\.)?{re.escape(name)}(\..*)?" for name in self.beside() if "." not in name]
        left = relative(self.left(), self.decoder.layer_names)
        if not left:
            return {**found, **({"dynamic": {f"-:{name}$": {} for name in towers}} if towers else {})}
        alone = tuple(linear.layer for linear in self.linears if linear.module)
        mine = relative(alone, self.decoder.layer_names)
        # Loaders of the one kind compare ends of names, of the other by regular expression.
        if any(name.endswith(tuple(mine)) for name in left):
            kept = [name for names in mine.values() for name in dict.fromkeys(names)]
            skipped = [re.escape(name) for names in left.values() for name in names]
        else:
            kept, skipped = list(mine), [rf".*\.{re.escape(name)}" for name in left]
        found["modules_in_block_to_quantize"] = [kept]
        found["dynamic"] = {f"-:{name}$": {} for name in [*skipped, *towers]}
        return found
