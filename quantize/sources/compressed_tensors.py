"""A checkpoint in compressed-tensors, as llm-compressor writes it: every scheme of weights alone is undone as
its tensors are read; scales of activations and of caches are left out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.reader import IN_FILES, ReadEntry
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo
from quantize.dtypes import FLOATS, to_float32
from quantize.errors import BadInput, Unsupported
from quantize.formats.codes import HeldGrid
from quantize.formats.compressed_tensors import BLOCK, PARTS
from quantize.formats.packed import SOURCES
from quantize.numerics.compressed_tensors import dequantize
from quantize.numerics.packing import WORD_BITS, unpack_bits
from quantize.sources.dequantized import quantization_of
from quantize.terminal import printable

#: last parts of the names of what is no weight
LEFT_OUT = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "q_scale",
    "k_scale", "v_scale",
)  # fmt: skip
#: what a weight may be stored as beside its scale -> parts that must be there too
NEEDED = {
    ("weight", "F8_E4M3"): (), ("weight", "I8"): (), ("weight_packed", "I32"): ("weight_shape",),
    ("weight_packed", "U8"): (),
}  # fmt: skip


class CompressedTensors:
    """``tensors``: of the checkpoint, the quantized ones as float32."""

    layout = "compressed-tensors"

    def __init__(self, stored: Mapping[str, StoredTensor], config: dict[str, Any], source: str):
        """Errors: BadInput where tensors are missing or do not fit one another; Unsupported for sparse
        weights, rotated ones, and types that none of the schemes has."""
        self._stored, self._source = stored, source
        quantization = quantization_of(config) or {}
        self._block = _block(quantization)
        if quantization.get("sparsity_config") or quantization.get("transform_config"):
            raise Unsupported(
                f"{source}: its weights are sparse or rotated, which is not undone here; "
                "convert the original checkpoint"
            )
        meta = quantization.get("meta")
        if isinstance(meta, dict) and meta.get(SOURCES):
            raise Unsupported(
                f"{source}: its experts were taken out of larger tensors; convert the original checkpoint"
            )
        self.tensors: dict[str, TensorInfo] = {}
        self.grids: dict[str, HeldGrid] = {}
        kinds: dict[str, int] = {}
        scaled = {name.rpartition(".")[0] for name in stored if name.endswith(".weight_scale")}
        for name, info in stored.items():
            base, _, part = name.rpartition(".")
            if part in LEFT_OUT or (
                base in scaled and part in PARTS and part not in ("weight", "weight_packed")
            ):
                continue
            if base in scaled and part in ("weight", "weight_packed") and info.dtype not in FLOATS:
                kind, shape = self._matrix(base, part)
                kinds[kind] = kinds.get(kind, 0) + 1
                self.tensors[f"{base}.weight"] = TensorInfo(f"{base}.weight", shape, "F32")
                if (grid := self._grid(base, shape)) is not None:
                    self.grids[f"{base}.weight"] = grid
            else:
                self.tensors[name] = info
        self.quantized = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        if len(self.grids) != sum(kinds.values()):  # not all can be taken over
            self.grids = {}

    def _grid(self, base: str, shape: tuple[int, int]) -> HeldGrid | None:
        """None where it is not packed in words, with zero points in words too."""
        words, scale = self._stored.get(f"{base}.weight_packed"), self._stored[f"{base}.weight_scale"]
        zeros = self._stored.get(f"{base}.weight_zero_point")
        outputs, inputs = shape
        if words is None or words.dtype != "I32" or scale.shape[:1] != (outputs,):
            return None
        bits = next((bits for bits in (2, 4, 8) if words.shape[1] * WORD_BITS == inputs * bits), 0)
        groups = scale.shape[1] if len(scale.shape) == 2 else 1
        fits = zeros is None or (
            zeros.dtype == "I32" and zeros.shape == (-(-outputs * bits // WORD_BITS), groups)
        )
        whole = bits and groups and not inputs % groups and not outputs * bits % WORD_BITS
        return HeldGrid(outputs, inputs, bits, groups, scale.dtype) if fits and whole else None

    def scales(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        grid, base = self.grids[name], name.removesuffix(".weight")
        raw = IN_FILES.read(self._stored[f"{base}.weight_scale"])
        scales = to_float32(raw, grid.scale_type).reshape(grid.outputs, grid.groups)
        words = self._stored.get(f"{base}.weight_zero_point")
        if words is None:
            return scales, np.full(scales.shape, 1 << (grid.bits - 1), np.int32)
        return scales, unpack_bits(np.ascontiguousarray(IN_FILES.read(words)), grid.bits).astype(np.int32)

    def codes(self, name: str) -> np.ndarray:
        words = IN_FILES.read(self._stored[f"{name.removesuffix('.weight')}.weight_packed"])
        codes = unpack_bits(np.ascontiguousarray(words.T), self.grids[name].bits)
        return np.ascontiguousarray(codes.T)

    def reordered(self, name: str) -> bool:
        grid, index = self.grids[name], self._stored.get(f"{name.removesuffix('.weight')}.weight_g_idx")
        meant = np.arange(grid.inputs) // grid.group_size
        return index is not None and not np.array_equal(IN_FILES.read(index), meant)

    def _matrix(self, base: str, part: str) -> tuple[str, tuple[int, int]]:
        """(what it is stored as, (outputs, inputs))."""
        stored, info = self._stored, self._stored[f"{base}.{part}"]
        scale = stored[f"{base}.weight_scale"]
        needed = NEEDED.get((part, info.dtype))
        if needed is None:
            raise Unsupported(f"{self._source}: tensor {info.name} is stored as {info.dtype}, no scheme's is")
        divided = part == "weight_packed" and info.dtype == "U8" and scale.dtype == "F8_E4M3"
        for each in (*needed, *(["weight_global_scale"] if divided else ())):
            if f"{base}.{each}" not in stored:
                raise BadInput(
                    f"{self._source}: tensor {info.name} has no {base}.{each}; fetch the whole checkpoint"
                )
        if len(info.shape) != 2:
            raise BadInput(
                f"{self._source}: tensor {info.name} has shape {list(info.shape)}; expected a matrix"
            )
        outputs, inputs = info.shape[0], info.shape[1] * (2 if info.dtype == "U8" else 1)
        for each, kinds in (("weight_zero_point", ("I8", "I32")), ("weight_g_idx", ("I32", "I64"))):
            other = stored.get(f"{base}.{each}")
            if other is not None and other.dtype not in kinds:
                raise Unsupported(f"{self._source}: tensor {other.name} is stored as {other.dtype}")
        if info.dtype == "I32":
            shape = stored[f"{base}.weight_shape"]
            said = IN_FILES.read(shape) if shape.shape == (2,) else np.zeros(2)
            if (
                shape.dtype not in ("I32", "I64")
                or int(said[0]) != outputs
                or not 0 < int(said[1]) <= 32 * info.shape[1]
            ):
                raise BadInput(
                    f"{self._source}: {base}.weight_shape says {printable(said.tolist(), 60)} "
                    f"of a tensor of shape {list(info.shape)}; fetch the checkpoint again"
                )
            inputs = int(said[1])
        self._check_scale(info, scale, (outputs, inputs))
        fours = {"U8": "NVFP4" if divided else "MXFP4", "F8_E4M3": "FP8", "I8": "INT8"}
        kind = fours.get(info.dtype) or f"INT{round(32 * info.shape[1] / inputs)}"
        return kind, (outputs, inputs)

    def _check_scale(self, info: StoredTensor, scale: StoredTensor, shape: tuple[int, int]) -> None:
        wanted = {"U8": ("F8_E4M3", "U8")}.get(info.dtype, FLOATS)
        if scale.dtype not in wanted:
            raise Unsupported(f"{self._source}: tensor {scale.name} is stored as {scale.dtype}, no scale is")
        outputs, inputs = shape
        blocks = (-(-outputs // self._block[0]), -(-inputs // self._block[1]))
        fits = scale.shape in ((outputs,), (outputs, 1)) and info.dtype != "U8"
        fits = fits or (scale.parameters == 1 and not info.name.endswith("packed"))
        if info.dtype == "F8_E4M3":
            fits = fits or scale.shape == blocks
        elif len(scale.shape) == 2 and scale.shape[0] == outputs and scale.shape[1]:
            fits = fits or inputs % scale.shape[1] == 0
        if not fits:
            raise BadInput(
                f"{self._source}: tensor {scale.name} has shape {list(scale.shape)}, which does not fit "
                f"a weight of shape {list(shape)}; fetch the checkpoint again"
            )

    def read(self, info: TensorInfo) -> np.ndarray:
        """Errors: BadInput where zero points or groups of inputs do not fit."""
        base = info.name.removesuffix(".weight")
        names = {part: name for part in PARTS if (name := f"{base}.{part}") in self._stored}
        main = self._stored[names.get("weight_packed") or names.get("weight") or info.name]
        if "weight_scale" not in names or info.name == base or main.dtype in FLOATS:
            return IN_FILES.read(self._stored[info.name])
        parts = {part: IN_FILES.read(self._stored[name]) for part, name in names.items()}
        types = {part: self._stored[name].dtype for part, name in names.items()}
        if types["weight_scale"] in FLOATS:
            scales = to_float32(parts["weight_scale"], types["weight_scale"])
            parts["weight_scale"] = scales.reshape(-1, 1) if scales.ndim == 1 else scales
        if (zeros := parts.get("weight_zero_point")) is not None and zeros.ndim == 1:
            parts["weight_zero_point"] = zeros.reshape(-1, 1)
        try:
            return dequantize(parts, types, self._block)
        except ValueError as error:
            raise BadInput(f"{self._source}: {base}: {error}; fetch the checkpoint again") from None

    def entries(self, info: TensorInfo) -> ReadEntry | None:
        stored = self._stored.get(info.name)
        return IN_FILES.entries(stored) if stored is not None and stored.dtype in FLOATS else None

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return IN_FILES.files(self._stored.values())


def _block(quantization: dict[str, Any]) -> tuple[int, int]:
    """Sizes of blocks, where some group of the config has them."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found = weights.get("block_structure") if isinstance(weights, dict) else None
        if (
            isinstance(found, list)
            and len(found) == 2
            and all(type(each) is int and 0 < each <= 1 << 20 for each in found)
        ):
            return found[0], found[1]
    return BLOCK, BLOCK
