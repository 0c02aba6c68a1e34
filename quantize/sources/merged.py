"""A PEFT LoRA merged into its base as it is read: a checkpoint like any other, for every method.

W + s B A is computed in float32 and rounded to the base's own dtype when a tensor is asked for; the model is
never built, and only the small files are written. Source: peft's ``tuners/lora/layer.py`` (get_delta_weight)
and ``tuners/lora/dora.py``.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint
from quantize.checkpoint.model_card import CARD, license_files
from quantize.checkpoint.reader import ReadEntry, Weights
from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.checkpoint.tensors import Entry, as_written, write_config
from quantize.dtypes import NUMPY
from quantize.errors import StepFailed
from quantize.files import inside, typed_path
from quantize.sources.adapter import AT_THE_ENDS, CONFIG, WEIGHTS, Adapter, Delta, open_adapter
from quantize.staging import held_until_exit


class MergedTensors:
    """Reads a tensor of the base, or of the adapter in its stead, and adds what the adapter has for it."""

    def __init__(self, base: Checkpoint, adapter: Adapter):
        self._base, self._adapter = base, adapter

    def read(self, info: TensorInfo) -> np.ndarray:
        """Errors: StepFailed where base or adapter holds NaN or Inf, or what comes out is too large."""
        adapter, name = self._adapter, info.name
        under = adapter.under(name, self._base)
        inherited = self._base.tensors.get(under.name) is under
        if inherited and name not in adapter.deltas:
            return self._base.read(under.name)
        weight = self._base.read_float32(under.name) if inherited else adapter.float32(under.name)
        if name in adapter.deltas:
            weight = _merged(weight, adapter, adapter.deltas[name])
        return _store(weight, info.dtype)

    def entries(self, info: TensorInfo) -> ReadEntry | None:
        under = self._adapter.under(info.name, self._base)
        inherited = self._base.tensors.get(under.name) is under
        return self._base.entries(under.name) if inherited and info.name not in self._adapter.deltas else None

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        own = [(name, inside(self._adapter.folder, name)) for name in (CONFIG, WEIGHTS)]
        return [*self._base.reader.files(self._base.tensors.values()), *own]


def merge_adapter(checkpoint: Checkpoint, adapter: str | Path, scratch: Path | None = None) -> Checkpoint:
    """``checkpoint`` with the LoRA in the folder ``adapter`` merged. Config and tokenizer lie in a folder
    under ``scratch``, removed when the program ends.

    Errors: BadInput where the folder holds no LoRA, is damaged, or was made for another base; Unsupported for
    kinds of adapter that cannot be merged; StepFailed for a full disk.
    """
    opened = open_adapter(typed_path(adapter), checkpoint)
    names = [
        *checkpoint.tensors,
        *(name for name in (*opened.replaced, *opened.deltas) if name not in checkpoint.tensors),
    ]
    names += [opened.tie.head] if opened.tie and opened.unties else []
    shapes = {name: opened.under(name, checkpoint).shape for name in dict.fromkeys(names)}
    dtypes = {
        name: checkpoint.tensors[name].dtype if name in checkpoint.tensors else checkpoint.dtype
        for name in shapes
    }
    if opened.tie:
        dtypes[opened.tie.head] = checkpoint.tensors[opened.tie.embedding].dtype
    folder = held_until_exit("merged", scratch)
    try:
        write_config(folder, _config(checkpoint, opened, shapes))
        _copy_small_files(checkpoint, opened, folder, shapes)
    except OSError as error:
        raise StepFailed(
            f"{folder}: cannot hold the config and tokenizer of the merged checkpoint ({error.strerror}); "
            "set TMPDIR to a larger disk"
        ) from None
    return Checkpoint.open(
        folder,
        source=f"{checkpoint.source}+{opened.folder.resolve().name}",
        revision=checkpoint.revision,
        trust_remote_code=checkpoint.trust_remote_code,
        weights=Weights(
            as_written(Entry(name, dtypes[name], shapes[name]) for name in shapes),
            MergedTensors(checkpoint, opened),
            quantized=checkpoint.quantized,
        ),
    )


def _merged(weight: np.ndarray, adapter: Adapter, delta: Delta) -> np.ndarray:
    """float32 (out, in), or as the base stores it."""
    change = np.float32(delta.scaling) * (adapter.float32(delta.b) @ adapter.float32(delta.a))
    if delta.embedding or delta.transposed:
        change = change.T
    if not delta.magnitude:
        return np.asarray(weight + change, np.float32)
    axis = 0 if delta.transposed else 1
    whole = weight + change
    length = np.sqrt(np.square(whole).sum(axis=axis, keepdims=True))
    magnitude = adapter.float32(delta.magnitude).reshape(length.shape)
    return np.asarray(whole * (magnitude / length), np.float32)


def _store(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rounded to nearest even in ``dtype``, BF16 as bit patterns. Errors: StepFailed where float16
    overflows."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        out = values.astype(NUMPY[dtype])
    if not np.isfinite(out).all():
        raise StepFailed(
            f"a merged weight is too large for {dtype}, the dtype "
            "of the base; convert the base to bfloat16 first"
        )
    return out


def _config(checkpoint: Checkpoint, adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    config = dict(checkpoint.config)
    resized = [
        name
        for name, info in checkpoint.tensors.items()
        if AT_THE_ENDS.search(name) and info.shape != shapes[name]
    ]
    if resized:
        config["vocab_size"] = shapes[resized[0]][0]
    if adapter.unties:
        config["tie_word_embeddings"] = False
    return config


def _copy_small_files(
    checkpoint: Checkpoint, adapter: Adapter, folder: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    """The base's tokenizer, or the adapter's where it brings an embedding with other rows (added tokens)."""
    resized = any(
        checkpoint.tensors[name].shape != shape
        for name, shape in shapes.items()
        if name in checkpoint.tensors
    )
    for path in [
        *checkpoint.companion_files,
        inside(checkpoint.folder, CARD),
        *license_files(checkpoint.folder),
    ]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if resized:
        for name in TOKENIZER_FILES:
            if inside(adapter.folder, name).is_file():
                shutil.copyfile(adapter.folder / name, folder / name)
