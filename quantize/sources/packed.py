"""A checkpoint packed as AutoGPTQ's format (versions 1 and 2) or AutoAWQ's GEMM format, whoever made it: read
as the weights that its codes mean, or taken over code by code (``formats.codes``)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.reader import IN_FILES
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo
from quantize.dtypes import to_float32
from quantize.errors import BadInput, Unsupported
from quantize.formats.codes import HeldGrid
from quantize.formats.packed import SOURCES, packed_shape
from quantize.formats.stored import told_grid
from quantize.formats.told import read_told
from quantize.numerics.grids import Grid
from quantize.numerics.packing import dequantize_awq, dequantize_gptq, gptq_zeros, unpack_awq, unpack_bits
from quantize.sources.dequantized import quantization_of
from quantize.terminal import printable

PARTS = ("qweight", "qzeros", "scales", "g_idx")
#: model types whose linear layers are transformers' Conv1D, which stores a weight input-first
INPUT_FIRST = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
#: what GPTQ's packings add to a stored zero point
ZEROS_LESS = {"gptq": 1, "gptq_v2": 0}


class PackedTensors:
    """``tensors``: of the checkpoint, the packed ones as float32, which holds each product rounded once."""

    def __init__(self, stored: Mapping[str, StoredTensor], config: dict[str, Any], source: str):
        """Errors: BadInput where tensors are missing or do not fit one another; Unsupported for other
        packings, and where an artifact's tensors are no whole tensors of a checkpoint."""
        self._stored, self._source = stored, source
        said = read_told(Path(source), {"quantization_config": quantization_of(config)})
        self._awq = said.quant_method == "awq"
        self.layout = "AWQ" if self._awq else "GPTQ"
        packing = (said.version or "gemm").lower() if self._awq else said.checkpoint_format or said.format
        packing = packing or "gptq"
        if packing not in (("gemm",) if self._awq else ZEROS_LESS):
            raise Unsupported(
                f"{source}: its weights are packed as {self.layout} in the form {printable(packing, 40)}, "
                "which is not read here; convert the original checkpoint"
            )
        self._less = ZEROS_LESS.get(packing, 0)
        self._input_first = config.get("model_type") in INPUT_FIRST
        meta = (quantization_of(config) or {}).get("meta")
        told = meta.get(SOURCES) if isinstance(meta, dict) else None
        if told and not self._input_first:
            raise Unsupported(
                f"{source}: its experts were taken out of larger tensors; convert the original checkpoint"
            )
        usual = Grid(said.bits, said.group_size, said.sym)
        rules = {} if self._awq else said.dynamic or {}
        self.tensors: dict[str, TensorInfo] = {}
        self.grids: dict[str, HeldGrid] = {}
        packed = {name.rpartition(".")[0] for name in stored if name.endswith(".qweight")}
        for name, info in stored.items():
            base, _, part = name.rpartition(".")
            if base not in packed or part not in PARTS:
                if part != "scales" or not self._ones(info):
                    self.tensors[name] = info
                continue
            if part != "qweight":
                continue
            bits = told_grid(Path(source), rules, base, usual).bits
            shape = packed_shape(stored, base, bits, along_inputs=not self._awq)
            index = stored.get(f"{base}.g_idx")
            if (
                shape is None
                or not all(shape)
                or shape[1] % shape[2]
                or any(side * bits % 32 for side in shape[:2])
                or (index is not None and index.dtype not in ("I32", "I64"))
            ):
                raise BadInput(
                    f"{source}: {base}: qweight, qzeros and scales are not all there, or do not fit one "
                    f"another as {bits} bits; fetch the checkpoint again"
                )
            outputs, inputs, groups = shape
            whole = (inputs, outputs) if self._input_first else (outputs, inputs)
            self.tensors[f"{base}.weight"] = TensorInfo(f"{base}.weight", whole, "F32")
            self.grids[f"{base}.weight"] = HeldGrid(
                outputs, inputs, bits, groups, stored[f"{base}.scales"].dtype
            )
        if not self.grids:
            raise BadInput(
                f"{source}: config.json says that it is already quantized ({said.quant_method}), but no "
                "tensor is packed; fetch config and weights of one model"
            )
        self.quantized = self._counts()

    def _counts(self) -> str:
        kinds: dict[str, int] = {}
        for grid in self.grids.values():
            kind = f"{self.layout} INT{grid.bits}"
            kinds[kind] = kinds.get(kind, 0) + 1
        return ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))

    def _ones(self, info: StoredTensor) -> bool:
        """Factors of an activation, as AutoAWQ stores them. Errors: Unsupported where they change
        anything."""
        if not self._awq:
            return False
        if np.all(to_float32(IN_FILES.read(info), info.dtype) == 1):
            return True
        raise Unsupported(
            f"{self._source}: {info.name} scales what an activation gives, which is not undone here; "
            "convert the original checkpoint"
        )

    def _part(self, name: str, part: str) -> np.ndarray:
        return IN_FILES.read(self._stored[f"{name.removesuffix('.weight')}.{part}"])

    def _raw_scales(self, name: str) -> np.ndarray:
        """(g, o) float32."""
        return to_float32(self._part(name, "scales"), self.grids[name].scale_type)

    def scales(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        words = self._part(name, "qzeros")
        zeros = unpack_awq(words) if self._awq else gptq_zeros(words, self.grids[name].bits, self._less)
        return np.ascontiguousarray(self._raw_scales(name).T), np.ascontiguousarray(zeros.T.astype(np.int32))

    def codes(self, name: str) -> np.ndarray:
        words = self._part(name, "qweight")
        codes = unpack_awq(words) if self._awq else unpack_bits(words, self.grids[name].bits)
        return np.ascontiguousarray(codes.T)

    def _index(self, name: str) -> np.ndarray | None:
        return self._part(name, "g_idx") if f"{name.removesuffix('.weight')}.g_idx" in self._stored else None

    def reordered(self, name: str) -> bool:
        grid, index = self.grids[name], self._index(name)
        return index is not None and not np.array_equal(index, np.arange(grid.inputs) // grid.group_size)

    def read(self, info: TensorInfo) -> np.ndarray:
        """Errors: BadInput where groups of inputs do not fit."""
        grid = self.grids.get(info.name)
        if grid is None:
            return IN_FILES.read(self._stored[info.name])
        words, zeros, scales = (
            self._part(info.name, "qweight"),
            self._part(info.name, "qzeros"),
            self._raw_scales(info.name),
        )
        try:
            if self._awq:
                values = dequantize_awq(words, zeros, scales, grid.group_size)
            else:
                values = dequantize_gptq(
                    words, zeros, scales, self._index(info.name), grid.bits, grid.group_size, self._less
                )
        except ValueError as error:
            raise BadInput(f"{self._source}: {info.name}: {error}; fetch the checkpoint again") from None
        return np.ascontiguousarray(values.T) if self._input_first else values

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return IN_FILES.files(self._stored.values())
