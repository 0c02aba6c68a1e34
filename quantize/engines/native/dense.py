"""This program's own engine: tensors streamed from the source's files, one at a time, into another dtype. No
model is built, so any architecture passes."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint, as_torch
from quantize.checkpoint.reader import ReadEntry
from quantize.checkpoint.tensors import Entry, torch_bytes, write_config, write_folder
from quantize.dtypes import FLOATS, STORED
from quantize.engines.base import Conversion, Engine
from quantize.errors import StepFailed

FLOAT16_MAX = 65504.0


class Native(Engine):
    libraries: ClassVar[tuple[str, ...]] = ("torch",)
    on_device: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return "quantwright"


NATIVE = Native()


def write_dense(
    checkpoint: Checkpoint, dtype: str, stage: Path, keeps: frozenset[str] = frozenset()
) -> Conversion:
    """``keeps``: tensors that keep their dtype, as what of a model is not its text model.

    Errors: StepFailed where a weight is NaN or Inf, or too large for float16."""
    storage = STORED[dtype]
    notes: list[Note] = []
    entries = []
    for name, info in checkpoint.tensors.items():
        if name in keeps:
            entries.append(Entry(name, info.dtype, info.shape))
        elif info.dtype in FLOATS:
            entries.append(Entry(name, storage, info.shape))
        else:
            entries.append(Entry(name, info.dtype, info.shape))
            notes.append(Note(tensor=name, what=f"kept as {info.dtype}", why="holds integers, not weights"))
    cast = {info.dtype for name, info in checkpoint.tensors.items() if name not in keeps}
    rounded = cast & set(FLOATS) - {storage}
    kept = {checkpoint.tensors[name].dtype for name in keeps} - {storage}
    if kept:
        parts = ", ".join(sorted({name.removeprefix("model.").split(".")[0] for name in keeps}))
        why = "it is no part of the text model"
        notes.append(Note(tensor=parts, what=f"kept as {', '.join(sorted(kept))}", why=why))
    if storage != "F32" and rounded:
        what = f"rounded from {', '.join(sorted(rounded))} to {storage}"
        notes.append(Note(tensor="*", what=what, why=f"the recipe asks for {dtype}"))

    def data(name: str) -> np.ndarray | Iterator[np.ndarray]:
        if checkpoint.tensors[name].dtype not in FLOATS:
            return np.array(checkpoint.read(name))
        if name in keeps:
            return torch_bytes(checkpoint.read_torch(name))
        return _cast(checkpoint, name, dtype)

    weight_bytes = write_folder(stage, entries, data)
    config = {**checkpoint.config}
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    for part in ("text_config",) if keeps else ("text_config", "vision_config", "audio_config"):
        if isinstance(config.get(part), dict) and {"dtype", "torch_dtype"} & set(config[part]):
            inner = {key: value for key, value in config[part].items() if key != "torch_dtype"}
            config[part] = {**inner, "dtype": dtype}
    write_config(stage, config)
    return Conversion(weight_bytes, engine=NATIVE.label, libraries=NATIVE.libraries, notes=notes)


def _cast(checkpoint: Checkpoint, name: str, dtype: str) -> np.ndarray | Iterator[np.ndarray]:
    """Bytes of one tensor in ``dtype``, rounded to nearest even; of one that holds a layer's experts, of each
    in turn."""
    info = checkpoint.tensors[name]
    read = checkpoint.entries(name) if len(info.shape) == 3 else None
    if read is None:
        return _cast_whole(checkpoint, name, dtype)
    return _cast_entries(checkpoint, name, dtype, read)


def _cast_entries(checkpoint: Checkpoint, name: str, dtype: str, read: ReadEntry) -> Iterator[np.ndarray]:
    import torch

    info = checkpoint.tensors[name]
    for index in range(info.shape[0]):
        cast = as_torch(read(index), info.dtype).to(getattr(torch, dtype))
        if not torch.isfinite(cast.sum(dtype=torch.float64)):
            _cast_whole(checkpoint, name, dtype)  # which says what is wrong, if anything
        yield torch_bytes(cast)


def _cast_whole(checkpoint: Checkpoint, name: str, dtype: str) -> np.ndarray:
    import torch

    tensor = checkpoint.read_torch(name)
    cast = tensor.to(getattr(torch, dtype))
    if dtype == "float16" and tensor.dtype != torch.float16 and not torch.isfinite(cast).all():
        largest = float(tensor.abs().max())
        raise StepFailed(
            f"{checkpoint.source}: tensor {name} holds values up to {largest:.4g}, but "
            f"float16's largest value is {FLOAT16_MAX:.0f}; use bfloat16 or float32"
        )
    return torch_bytes(cast)
