"""How large an HF folder of safetensors will be, from headers alone: within one per cent."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from math import ceil
from typing import Any, ClassVar

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import ALIGNMENT
from quantize.dtypes import BYTES, FLOATS, STORED, dense
from quantize.formats.base import Format

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype as safetensors calls it, shape
CONFIG_EXTRA_BYTES = 600  # of a quantization_config


class FolderFormat(Format):
    """An HF folder: each tensor of the source as some entries of its safetensors files."""

    #: bytes that config.json grows by, and files beside it hold
    config_bytes: ClassVar[int] = CONFIG_EXTRA_BYTES

    @abstractmethod
    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        """What is stored of the source's tensor ``name``."""

    def map_bytes(self, expected: frozenset[str]) -> int:
        """Of a file that names the quantized layers."""
        return 0

    def output_bytes(self, checkpoint: Checkpoint, expected: frozenset[str]) -> int:
        entries = [
            entry for name in checkpoint.tensors for entry in self.entries(checkpoint, name, name in expected)
        ]
        companions = sum(path.stat().st_size for path in checkpoint.companion_files)
        config = (checkpoint.folder / "config.json").stat().st_size
        extra = self.config_bytes + self.map_bytes(expected)
        return _safetensors_bytes(entries) + companions + config + extra


def loaded_dtype(checkpoint: Checkpoint) -> str:
    """What libraries that load the whole model store its unquantized tensors in."""
    return STORED[dense(checkpoint.dtype, "bfloat16")]


def kept_entry(checkpoint: Checkpoint, name: str, dtype: str, keeps: frozenset[str] = frozenset()) -> Entry:
    """A tensor that is not quantized: ``dtype``, but whole numbers and those of ``keeps`` stay what they
    are."""
    info = checkpoint.tensors[name]
    return name, dtype if info.dtype in FLOATS and name not in keeps else info.dtype, info.shape


def _safetensors_bytes(entries: list[Entry]) -> int:
    """Of a file holding ``entries``: header and data. Several shards add one header each, which is nothing at
    their size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in entries:
        size = BYTES[dtype]
        for axis in shape:
            size *= axis
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return ceil((8 + len(json.dumps(header, separators=(",", ":")))) / ALIGNMENT) * ALIGNMENT + offset
