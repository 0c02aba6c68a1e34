"""A checkpoint unquantized, every floating tensor in one dtype."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.checkpoint.tensors import StoredTensors
from quantize.dtypes import FLOATS, STORED
from quantize.formats.folder import Entry, FolderFormat, kept_entry

ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of a value, by rounding it to nearest


@dataclass(frozen=True)
class DenseFormat(FolderFormat):
    """``dtype``: one of ``quantize.dtypes.DENSE``. ``keeps``: tensors that keep the source's dtype."""

    dtype: str
    keeps: frozenset[str] = frozenset()

    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")
    config_bytes: ClassVar[int] = 0
    fewer_bits: ClassVar[bool] = False

    @property
    def value_rounding(self) -> float:
        return ROUNDING[self.dtype]

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        yield kept_entry(checkpoint, name, STORED[self.dtype], self.keeps)

    def quantized(self, stage: Path) -> dict[str, str]:
        return {name: info.dtype for name, info in StoredTensors(stage).info.items()}

    def fits(self, kind: str) -> bool:
        return kind == STORED[self.dtype]

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        stored = StoredTensors(stage)
        for name in stored:
            yield name, stored.float32(name)

    def by_entry(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray | Entries]]:
        """``dequantize``; what has three axes, as a layer's experts have, one entry at a time."""
        stored = StoredTensors(stage)
        for name, info in stored.info.items():
            if len(info.shape) == 3 and info.dtype in FLOATS:
                yield name, Entries(info.shape, partial(stored.float32_entry, name))
            else:
                yield name, stored.float32(name)
