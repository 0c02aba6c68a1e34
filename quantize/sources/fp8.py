"""A checkpoint whose weights are float8 with a scale for each block (``weight`` and ``weight_scale_inv``, as
DeepSeek, Qwen and MiniMax publish them): the scales are applied as the tensors are read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.reader import IN_FILES, ReadEntry
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo
from quantize.dtypes import FLOATS, to_float32
from quantize.errors import BadInput, Unsupported
from quantize.numerics.fp8 import dequantize_e4m3, e8m0_values
from quantize.sources.dequantized import quantization_of

FLOAT8, SCALE = "F8_E4M3", "_scale_inv"
#: scales of what goes into a layer, which are of use to programs that compute in float8
OF_INPUTS = (".activation_scale", ".input_scale")
MOST_BLOCK = 1 << 16


class Float8Tensors:
    """``tensors``: of the checkpoint, the float8 ones as float32, which holds each product."""

    def __init__(self, stored: Mapping[str, StoredTensor], block: tuple[int, int], source: str):
        """Errors: BadInput where a tensor has no scale, or one whose shape does not fit; Unsupported where a
        scale is of a type that none has."""
        self._stored, self._block, self._source = stored, block, source
        self.tensors: dict[str, TensorInfo] = {}
        scales = {name + SCALE for name, info in stored.items() if info.dtype == FLOAT8}
        for name, info in stored.items():
            if name in scales or name.endswith(OF_INPUTS):
                continue
            if info.dtype == FLOAT8:
                self._check(info)
                self.tensors[name] = TensorInfo(name, info.shape, "F32")
            else:
                self.tensors[name] = info
        self.quantized = f"{len(scales)} of {FLOAT8}" if scales else ""

    def _check(self, info: StoredTensor) -> None:
        scale = self._stored.get(info.name + SCALE)
        if scale is None:
            raise BadInput(
                f"{self._source}: tensor {info.name} is stored as {FLOAT8} without {info.name}{SCALE}; "
                "fetch the whole checkpoint"
            )
        if scale.dtype not in (*FLOATS, "F8_E8M0"):
            raise Unsupported(f"{self._source}: tensor {scale.name} is stored as {scale.dtype}, no scale is")
        if scale.parameters == 1:
            return
        blocks = tuple(-(-size // of) for size, of in zip(info.shape[-2:], self._block, strict=False))
        if len(info.shape) < 2 or scale.shape != (*info.shape[:-2], *blocks):
            raise BadInput(
                f"{self._source}: tensor {scale.name} has shape {list(scale.shape)}; one of "
                f"{list(info.shape)} in blocks of {list(self._block)} has "
                f"{[*info.shape[:-2], *blocks]}; fetch the checkpoint again"
            )

    def read(self, info: TensorInfo) -> np.ndarray:
        stored = self._stored[info.name]
        raw = IN_FILES.read(stored)
        if stored.dtype != FLOAT8:
            return raw
        return dequantize_e4m3(raw, self._factors(info.name), self._block)

    def entries(self, info: TensorInfo) -> ReadEntry | None:
        stored = self._stored[info.name]
        codes = IN_FILES.entries(stored)
        if stored.dtype != FLOAT8:
            return codes
        if len(stored.shape) < 3:  # a row may be a part of a block
            return None
        factors = self._factors(info.name)
        whole = factors.size == 1
        return lambda index: dequantize_e4m3(codes(index), factors if whole else factors[index], self._block)

    def _factors(self, name: str) -> np.ndarray:
        """float32"""
        scale = self._stored[name + SCALE]
        values = IN_FILES.read(scale)
        return e8m0_values(values) if scale.dtype == "F8_E8M0" else to_float32(values, scale.dtype)

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return IN_FILES.files(self._stored.values())


def float8(stored: Mapping[str, StoredTensor], config: dict[str, Any], source: str) -> Float8Tensors:
    """Errors: as of ``Float8Tensors``; BadInput where config.json's sizes of a block are none."""
    block = (quantization_of(config) or {}).get("weight_block_size") or [1, 1]
    if not (isinstance(block, list) and len(block) == 2 and all(_is_size(each) for each in block)):
        raise BadInput(f"{source}: config.json: weight_block_size: expected two sizes up to {MOST_BLOCK}")
    return Float8Tensors(stored, (block[0], block[1]), source)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_BLOCK
