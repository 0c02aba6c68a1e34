"""torchao's Int8Tensor as transformers saves it: of each quantized ``weight`` its ``_weight_qdata``,
``_weight_scale`` and ``_weight_zero_point``, and what else makes the tensor in the metadata of the files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.safetensors_header import read_metadata
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import StepFailed
from quantize.formats.folder import Entry, FolderFormat, kept_entry, loaded_dtype
from quantize.hf.loaded import as_loaded, loaded, stored_sources
from quantize.numerics.compressed_tensors import dequantize_int8

QDATA = "._weight_qdata"
_WEIGHT = ".weight"
#: of a quantized tensor and of another one, beside its name, which stands there twice
METADATA_BYTES, PLAIN_METADATA_BYTES = 230, 40


@dataclass(frozen=True)
class TorchAoFormat(FolderFormat):
    """``group_size``: inputs that share a scale, -1 for whole rows. ``keeps``: tensors that keep the source's
    dtype."""

    group_size: int = -1
    keeps: frozenset[str] = frozenset()

    storage: ClassVar[str] = "torchao"
    hub_tag: ClassVar[str] = "torchao"
    opening_advice: ClassVar[str] = "With `pip install torchao transformers accelerate`:"

    def output_bytes(self, checkpoint: Checkpoint, expected: frozenset[str]) -> int:
        held = as_loaded(checkpoint, expected, source_names=True)
        metadata = sum(
            2 * len(name) + (METADATA_BYTES if name in expected else PLAIN_METADATA_BYTES)
            for name in held.tensors
        )
        return super().output_bytes(held, expected) + metadata

    def entries(self, checkpoint: Checkpoint, name: str, quantized: bool) -> Iterator[Entry]:
        info = checkpoint.tensors[name]
        if not quantized:
            yield kept_entry(checkpoint, name, loaded_dtype(checkpoint), self.keeps)
            return
        outputs, inputs = info.shape
        scales = (outputs, 1 if self.group_size < 0 else inputs // self.group_size)
        base = name.removesuffix(_WEIGHT)
        yield f"{base}{QDATA}", "I8", info.shape
        yield f"{base}._weight_scale", "F32", scales
        yield f"{base}._weight_zero_point", "I8", scales

    def quantized(self, stage: Path) -> dict[str, str]:
        stored = StoredTensors(stage).info
        found = {}
        for name, info in stored.items():
            base = name.removesuffix(QDATA)
            scale = stored.get(f"{base}._weight_scale")
            if base != name and info.dtype == "I8" and len(info.shape) == 2 and scale is not None:
                groups = scale.shape[-1]
                found[base + _WEIGHT] = "int8" + (f" g{info.shape[1] // groups}" if groups > 1 else "")
        return found

    def fits(self, kind: str) -> bool:
        return kind in ("int8", f"int8 g{self.group_size}")

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Errors: StepFailed where the files' metadata do not describe the tensors beside them."""
        stored = StoredTensors(stage)
        metadata: dict[str, str] = {}
        for file in {info.file for info in stored.info.values()}:
            metadata |= read_metadata(file)

        def values(name: str) -> np.ndarray:
            base = name.removesuffix(_WEIGHT)
            if f"{base}{QDATA}" not in stored:
                return stored.float32(name)
            data, scale = stored.raw(f"{base}{QDATA}"), stored.float32(f"{base}._weight_scale")
            _check_described(name, metadata, data.shape, scale.shape)
            return dequantize_int8(data, scale, stored.raw(f"{base}._weight_zero_point"))

        def there(name: str) -> bool:
            return name in stored or f"{name.removesuffix(_WEIGHT)}{QDATA}" in stored

        yield from stored_sources(loaded(checkpoint), checkpoint, there, values)


def _check_described(
    name: str, metadata: dict[str, str], shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    """That the loader, which goes by the metadata, makes of the arrays what their shapes say."""
    try:
        said = json.loads(metadata[name])
        block = said["_data"]["block_size"]
        good = said["_type"] == "Int8Tensor" and said["_data"]["act_quant_kwargs"] is None
        good = good and [axis * count for axis, count in zip(block, scales, strict=True)] == list(shape)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise StepFailed(
            f"{name}: the metadata of its file do not describe int8 weights of shape {list(shape)} with "
            f"{list(scales)} scales; the artifact is damaged, or made by another torchao: convert again"
        )
