"""A checkpoint whose experts are in MXFP4 (``..._blocks`` and ``..._scales``, as gpt-oss is published): what
they mean, bfloat16 holds exactly."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.reader import IN_FILES, ReadEntry
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo
from quantize.errors import BadInput
from quantize.numerics.mxfp4 import BLOCK, dequantize_mxfp4

BLOCKS, SCALES = "_blocks", "_scales"


class Mxfp4Tensors:
    """``tensors``: of the checkpoint, those in MXFP4 (experts, rows, columns / 32, 16) as bfloat16 (experts,
    columns, rows), input first as transformers holds them."""

    def __init__(self, stored: Mapping[str, StoredTensor], config: dict[str, Any], source: str):
        """Errors: BadInput where blocks have no scales, or those of another shape."""
        self._stored, self._source = stored, source
        self.tensors: dict[str, TensorInfo] = {}
        packed = 0
        for name, info in stored.items():
            if name.endswith(BLOCKS) and info.dtype == "U8":
                packed += 1
                self._check(info)
                experts, rows, groups, _ = info.shape
                whole = name.removesuffix(BLOCKS)
                self.tensors[whole] = TensorInfo(whole, (experts, groups * BLOCK, rows), "BF16")
            elif not (name.endswith(SCALES) and info.dtype == "U8"):
                self.tensors[name] = info
        self.quantized = f"{packed} of MXFP4" if packed else ""

    def _check(self, info: StoredTensor) -> None:
        name = info.name.removesuffix(BLOCKS) + SCALES
        scales = self._stored.get(name)
        if scales is None or scales.dtype != "U8":
            raise BadInput(f"{self._source}: tensor {info.name} has no {name}; fetch the whole checkpoint")
        if len(info.shape) != 4 or info.shape != (*scales.shape, BLOCK // 2):
            raise BadInput(
                f"{self._source}: tensor {info.name} has shape {list(info.shape)}, its scales "
                f"{list(scales.shape)}; expected (experts, rows, groups, {BLOCK // 2}) and one scale a group"
            )

    def read(self, info: TensorInfo) -> np.ndarray:
        blocks = self._stored.get(info.name + BLOCKS)
        if blocks is None or info.name in self._stored:
            return IN_FILES.read(self._stored[info.name])
        out = np.empty(info.shape, np.uint16)
        entry = self.entries(info)
        for expert in range(len(out)):
            out[expert] = entry(expert)
        return out

    def entries(self, info: TensorInfo) -> ReadEntry:
        blocks = self._stored.get(info.name + BLOCKS)
        if blocks is None or info.name in self._stored:
            return IN_FILES.entries(self._stored[info.name])
        codes, scales = IN_FILES.entries(blocks), IN_FILES.entries(self._stored[info.name + SCALES])

        def read(index: int) -> np.ndarray:
            values = dequantize_mxfp4(codes(index), scales(index))
            return (values.view(np.uint32) >> 16).astype(np.uint16).T  # the bits that are left are zero

        return read

    def packed(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        blocks = self._stored.get(name + BLOCKS)
        if blocks is None or name in self._stored:
            return None
        return IN_FILES.read(blocks), IN_FILES.read(self._stored[name + SCALES])

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return IN_FILES.files(self._stored.values())
