"""The tensors of the Hugging Face checkpoint that a GGUF file represents, made from the file's as they are
read.

Those that the file holds in F32, F16 or BF16 keep their type, quantized ones are dequantized to float32, so
that nothing is rounded on the way.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.reader import ReadEntry
from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.checkpoint.tensors import Entry, as_written
from quantize.dtypes import NUMPY
from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import Family, OneOf, Rule
from quantize.gguf.families.from_rules import make_plan, source_names, target_name
from quantize.gguf.families.operations import COPY
from quantize.gguf.families.plan import KNOWN, entry_of, joined_entry
from quantize.gguf.to_checkpoint.keyed import Keyed, keyed_tensors
from quantize.gguf.to_checkpoint.metadata import Metadata
from quantize.kernels.block_types import UNQUANTIZED
from quantize.terminal import printable

# GGUF tensors of which the pieces are kept, where several of the checkpoint's are in one
KEPT = 4


class GgufTensors:
    """``tensors``: of the checkpoint, in the order in which its files would hold them."""

    def __init__(self, file: GgufFile, config: dict[str, Any]):
        """``config``: the checkpoint's. Errors: as of ``plan_back``."""
        self._file = file
        mapped, shapes = plan_back(file, config)
        self._owners: dict[str, list[tuple[Mapped, int]]] = {}
        for m in mapped:
            for index, source in enumerate(m.sources):
                self._owners.setdefault(source, []).append((m, index))
        self._keyed = keyed_tensors(file, config)
        self.tensors = as_written(
            [
                *(
                    Entry(source, _common_dtype(file, [m for m, _ in owners]), shapes[source])
                    for source, owners in self._owners.items()
                ),
                *(Entry(name, "F32", values.shape) for name, values in self._keyed.items()),
            ]
        )
        self._pieces: OrderedDict[str, list[np.ndarray]] = OrderedDict()
        self._lock = Lock()

    @property
    def quantized(self) -> str:
        """How many of the file's tensors are quantized, by type ("12 of Q4_K, 2 of Q6_K"); empty where none
        is."""
        kinds = Counter(t.kind.name for t in self._file.tensors.values() if t.kind not in UNQUANTIZED)
        return ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())

    @property
    def kinds(self) -> dict[str, str]:
        """Tensor of the checkpoint -> what the file holds it in, several types joined."""
        return {
            source: "/".join(dict.fromkeys(self._file.tensors[mapped.name].kind.name for mapped, _ in owners))
            for source, owners in self._owners.items()
        }

    def read(self, info: TensorInfo) -> np.ndarray:
        if info.name in self._keyed:
            return self._keyed[info.name]
        owners = self._owners[info.name]
        if len(owners) > 1:
            return _joined(self._file, info, owners)
        mapped, index = owners[0]
        if len(mapped.sources) > 1 and mapped.of_entry is not None:
            return _kept(entry_of(mapped, index, partial(_matrix, self._file)))
        with self._lock:
            if mapped.name not in self._pieces:
                keep = KEPT if len(mapped.sources) > 1 else 1
                while len(self._pieces) >= keep:
                    self._pieces.popitem(last=False)
                self._pieces[mapped.name] = [_kept(p) for p in mapped.restore(_values(self._file, mapped))]
            self._pieces.move_to_end(mapped.name)
            return self._pieces[mapped.name][index]

    def entries(self, info: TensorInfo) -> ReadEntry | None:
        owners = [mapped for mapped, _ in self._owners.get(info.name, ())]
        if not owners or any(m.of_entry is None or len(m.sources) > 1 for m in owners):
            return None
        if len(owners) == 1:
            return lambda index: _kept(entry_of(owners[0], index, partial(_matrix, self._file)))
        read = partial(joined_entry, info.name, owners, self._file.matrix)
        return lambda index: _stored(read(index), info.dtype)

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        """Independent of the file's name, which is not part of its contents."""
        parts = sorted({tensor.file for tensor in self._file.tensors.values()})
        return [(f"model-{number:05d}.gguf", part) for number, part in enumerate(parts, 1)]


def _joined(file: GgufFile, info: TensorInfo, owners: list[tuple[Mapped, int]]) -> np.ndarray:
    """A tensor of which each of ``owners`` holds a part, in the type that they have in common."""
    whole = np.full(info.shape, np.nan, np.float32)
    for mapped, index in owners:
        part = mapped.restore(file.dequantize(mapped.name).reshape(mapped.shape))[index]
        np.copyto(whole, part, where=~np.isnan(part))
    return _stored(whole, info.dtype)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Back to where the values came from: exact."""
    if dtype == "BF16":
        return _kept((np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16))
    return _kept(values.astype(NUMPY[dtype]))


def _common_dtype(file: GgufFile, mapped: list[Mapped]) -> str:
    kinds = {_dtype(file, m) for m in mapped}
    return kinds.pop() if len(kinds) == 1 else "F32"


def _kept(piece: np.ndarray) -> np.ndarray:
    piece = np.ascontiguousarray(piece)
    piece.flags.writeable = False
    return piece


def plan_back(file: GgufFile, config: dict[str, Any]) -> tuple[list[Mapped], dict[str, tuple[int, ...]]]:
    """The family's own plan of the checkpoint that ``file`` was made from, its tensors matched with those of
    the file, and the shapes of the checkpoint's tensors.

    Errors: Unsupported for tensors of the file that the plan does not have; BadInput where shapes contradict
    the config.
    """
    architecture = config["architectures"][0]
    keyed = keyed_tensors(file, config)
    headers = {name: TensorInfo(name, values.shape, "F32") for name, values in keyed.items()}
    reader = Keyed(keyed)
    checkpoint = Checkpoint(file.path.parent, str(file.path), None, config, headers, reader=reader)
    family: Family = import_module(f"quantize.gguf.families.{KNOWN[architecture]}").family(checkpoint)
    h = Hyperparameters(config, family.defaults, str(file.path))
    tied = family.head == "required" and config["tie_word_embeddings"]
    for rule, layer in _rules(family, h.layers, file):
        for suffix in (*rule.suffixes, *rule.optional):
            name = target_name(rule, suffix, layer)
            if name in file.tensors and not (tied and name == "output.weight"):
                sources = source_names(rule, suffix, layer, h)
                operation = rule.op(h) if rule.op else COPY
                try:
                    shapes = operation.source_shapes(_shape(file, name), len(sources))
                except BadInput as error:
                    raise BadInput(f"{file.path}: tensor {name}: {error}") from None
                for source, shape in zip(sources, shapes, strict=True):
                    headers[source] = TensorInfo(source, shape, "F32")
    planned = [mapped for mapped in make_plan(family, checkpoint).tensors if mapped.name in file.tensors]
    left = sorted(set(file.tensors) - {mapped.name for mapped in planned} - {"rope_freqs.weight"})
    if left:
        raise Unsupported(
            f"{file.path}: tensor {printable(left[0], 100)} has no "
            f"place in a {architecture}; this GGUF cannot be read back"
        )
    found = {name: info.shape for name, info in headers.items()}
    return [mapped for mapped in planned if mapped.sources], found


def _rules(family: Family, layers: int, file: GgufFile) -> list[tuple[Rule, int]]:
    def first(entry: Rule | OneOf) -> tuple[Rule, ...]:
        return (entry,) if isinstance(entry, Rule) else entry.options[0]

    every = [(entry, 0) for entry in family.ends]
    every += [(entry, layer) for layer in range(layers) for entry in family.layer]
    if family.ahead is not None:
        later = range(layers, layers + min(Metadata(file).ahead, family.ahead.most))
        every += [(entry, layer) for layer in later for entry in family.ahead.layer]
    return [(rule, layer) for entry, layer in every for rule in first(entry)]


def _shape(file: GgufFile, name: str) -> tuple[int, ...]:
    shape = file.tensors[name].shape
    # The gate of a shared expert is a single row, which GGUF may hold without the axis of one.
    return (1, *shape) if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1 else shape


def _dtype(file: GgufFile, mapped: Mapped) -> str:
    kind = file.tensors[mapped.name].kind
    return kind.name if mapped.pure and kind in UNQUANTIZED else "F32"


def _values(file: GgufFile, mapped: Mapped) -> np.ndarray:
    kind = file.tensors[mapped.name].kind
    if mapped.pure and kind in UNQUANTIZED:
        return np.ascontiguousarray(file.raw(mapped.name)).view(NUMPY[kind.name]).reshape(mapped.shape)
    return file.dequantize(mapped.name).reshape(mapped.shape)


def _matrix(file: GgufFile, name: str, index: int) -> np.ndarray:
    """``_values`` of one of a tensor's matrices, for what only moves values."""
    kind, shape = file.tensors[name].kind, file.tensors[name].shape
    if kind not in UNQUANTIZED:
        return file.matrix(name, index)
    rows = file.raw(name)[index * shape[-2] : (index + 1) * shape[-2]]
    return np.ascontiguousarray(rows).view(NUMPY[kind.name])
