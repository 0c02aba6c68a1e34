"""Two models whose weights can be read by the same names, whatever each is stored as."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import read_config
from quantize.checkpoint.weight_files import read_weights
from quantize.dtypes import FLOATS, to_float32
from quantize.errors import BadInput, Unsupported
from quantize.formats.base import Format
from quantize.formats.bitsandbytes import BnbFormat
from quantize.formats.quanto import QuantoFormat
from quantize.formats.stored import stored_packed
from quantize.formats.torchao import TorchAoFormat
from quantize.gguf.container.files import find_gguf
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.to_checkpoint.config import to_config
from quantize.gguf.to_checkpoint.tensors import GgufTensors
from quantize.hf.load import storage_format
from quantize.hf.names import IGNORED
from quantize.inspection.tensors import folder_weights, gguf_weights
from quantize.sources.gguf_file import open_gguf
from quantize.sources.hub import resolve_model
from quantize.sources.opening import UNDONE, open_checkpoint
from quantize.terminal import printable

MOVED = (
    "AWQ moves scales of a layer's inputs into the norm or layer before it: single tensors differ from the "
    "source's by more than rounding, the model they make up does not"
)


@dataclass
class Side:
    """``names``: of its weights, empty where they are known only as they come. ``kinds``: name -> what it is
    stored as. ``folder``: where config and tokenizer lie, None of a GGUF that is read by its own names.
    ``converted``: whether they were made from a GGUF's metadata. ``note``: what to know of its weights."""

    model: str
    kinds: Mapping[str, str]
    names: tuple[str, ...] = ()
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    gguf: GgufFile | None = None
    converted: bool = False
    note: str = ""

    def read(self, name: str) -> np.ndarray:
        """float32. Only where ``names`` is not empty."""
        raise NotImplementedError

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in self.names:
            yield name, self.read(name)


@dataclass
class _Source(Side):
    """A checkpoint, or what is read as one."""

    checkpoint: Checkpoint | None = None

    def read(self, name: str) -> np.ndarray:
        assert self.checkpoint is not None
        info = self.checkpoint.tensors[name]
        raw = self.checkpoint.read(name)
        return to_float32(raw, info.dtype) if info.dtype in FLOATS else raw.astype(np.float32)


@dataclass
class _Gguf(Side):
    def read(self, name: str) -> np.ndarray:
        assert self.gguf is not None
        return self.gguf.dequantize(name)


@dataclass
class _Streamed(Side):
    """``format``'s own reader of ``artifact``, in its order. ``source``: whose tensors they are."""

    format: Format | None = None
    artifact: Path | None = None
    source: Checkpoint | None = None

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        assert self.format is not None
        assert self.artifact is not None
        assert self.source is not None
        yield from self.format.dequantize(self.artifact, self.source)


def open_sides(first: str, second: str) -> tuple[Side, Side]:
    """Errors: BadInput, Unsupported where weights of one cannot be read, or not without its source."""
    paths = [resolve_model(model)[0] for model in (first, second)]
    files = [find_gguf(path) for path in paths]
    if all(files):
        a, b = (_gguf(model, file) for model, file in zip((first, second), files, strict=True) if file)
        return a, b
    opened = [
        _open(model, path, file) for model, path, file in zip((first, second), paths, files, strict=True)
    ]
    first_side, second_side = opened
    if first_side is None:
        first_side = _with_source(first, paths[0], second_side)
    if second_side is None:
        second_side = _with_source(second, paths[1], first_side)
    return first_side, second_side


def _gguf(model: str, path: Path) -> Side:
    file = read_gguf(path)
    kinds = {weight.name: weight.type for weight in gguf_weights(file)}
    return _Gguf(model, kinds, tuple(file.tensors), None, {}, file)


def _open(model: str, path: Path, file: Path | None) -> Side | None:
    """None where its weights can be read only beside their source."""
    if file is not None:
        return _converted_back(model, file)
    config = read_config(path)
    storage = storage_format(path, config)
    if storage in ("bitsandbytes", "quanto", "torchao"):
        return None
    kinds = {w.name: w.type for w in folder_weights(read_weights(path)[0], config)}
    if storage in ("gptq", "awq"):
        stored = stored_packed(path)
        # in one order, whatever the files' is: two such folders are read side by side
        source = replace(stored.checkpoint, tensors=dict(sorted(stored.checkpoint.tensors.items())))
        side: Side = _Streamed(
            model, kinds, (), path, config, format=stored.format, artifact=path, source=source
        )
        side.note = MOVED if stored.format.moves_scales else ""
        return side
    if storage != "dense" and storage not in UNDONE:
        raise Unsupported(
            f"{model}: its weights are packed as {printable(storage, 40)}, which is not read here; "
            "`quantwright inspect` shows its headers"
        )
    checkpoint = open_checkpoint(path, tokenizer=False)
    return _of(model, checkpoint, kinds)


def _of(model: str, checkpoint: Checkpoint, kinds: Mapping[str, str]) -> Side:
    names = tuple(name for name in checkpoint.tensors if not name.endswith(IGNORED))
    return _Source(model, kinds, names, checkpoint.folder, checkpoint.config, checkpoint=checkpoint)


def _converted_back(model: str, path: Path) -> Side:
    """By the names of a Hugging Face checkpoint. Errors: as of ``open_gguf``."""
    checkpoint = open_gguf(path, source=model, tokenizer=False)
    file = read_gguf(path)
    kinds = GgufTensors(file, to_config(file)).kinds
    side = _of(model, checkpoint, kinds)
    side.converted = True
    return side


def _with_source(model: str, path: Path, other: Side | None) -> Side:
    """Errors: BadInput where the other model is none whose tensors this one's can be told by."""
    if not isinstance(other, _Source) or other.checkpoint is None:
        raise BadInput(
            f"{model}: its weights are read beside those of an unquantized model or a GGUF file; "
            "compare it with its source"
        )
    config = read_config(path)
    kinds = {w.name: w.type for w in folder_weights(read_weights(path)[0], config)}
    format: Format = BnbFormat("nf4")  # which reads what the file says
    storage = storage_format(path, config)
    if storage == "torchao":
        format = TorchAoFormat()
    elif storage == "quanto":
        found = QuantoFormat("int8").quantized(path)
        format = QuantoFormat(next(iter(found.values()), "int8").split()[0])
    return _Streamed(model, kinds, (), path, config, format=format, artifact=path, source=other.checkpoint)
