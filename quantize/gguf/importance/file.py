"""llama.cpp's importance matrices: for every weight, how large the activations are that meet each of its
columns.

Two formats. GGUF: tensors ``<name>.in_sum2`` (sums of squared activations, float32) and ``<name>.counts``
(over how many rows). The old one (.dat): mean squares times a number of calls. Nothing in a file is trusted:
every length is checked against the bytes that are there. Source: llama.cpp's common/imatrix-loader.cpp,
tools/imatrix and tools/quantize (revision 0c1e570).
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFValueType

from quantize.errors import BadInput
from quantize.gguf.container.reader import MAGIC, MAX_KEY, GgufFile, read_gguf
from quantize.gguf.container.writer import Kvs, Planned, write_gguf
from quantize.into_place import whole_file
from quantize.kernels.block_types import Type

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True)
class Entry:
    """``sums``: float32 (matrices, columns) of squares, over ``counts`` rows: int64 (matrices,). Several
    matrices: experts."""

    sums: np.ndarray
    counts: np.ndarray

    def means(self) -> np.ndarray:
        """float32 (matrices, columns), as llama-quantize passes them to the block quantizers: 1 where nothing
        was counted."""
        counts = self.counts[:, None].astype(np.float32)
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1))


@dataclass(frozen=True)
class ImportanceMatrix:
    """``entries`` by GGUF tensor name; ``chunk_count`` windows of ``chunk_size`` tokens of ``datasets`` (0:
    not known)."""

    entries: dict[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int


def read_imatrix(path: Path | str) -> ImportanceMatrix:
    """Errors: BadInput where the file is neither format, truncated, inconsistent, or holds NaN, Inf or
    negative values."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            old = file.read(len(MAGIC)) != MAGIC
            file.seek(0)
            matrix = _Old(path, file).read() if old else _from_gguf(path, read_gguf(path))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such importance matrix; `quantwright imatrix` makes one") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder; give the importance matrix file") from None
    for name, entry in matrix.entries.items():
        if not np.isfinite(entry.sums).all():
            raise BadInput(f"{path}: {name}: holds NaN or Inf; compute the importance matrix again")
        if (entry.sums < 0).any() or (entry.counts < 0).any():
            raise BadInput(f"{path}: {name}: negative sums of squares or counts; not an importance matrix")
    return matrix


def _from_gguf(path: Path, file: GgufFile) -> ImportanceMatrix:
    names = sorted(
        {n.removesuffix(end) for n in file.tensors for end in (SUMS, COUNTS) if n.endswith(end)} - {""}
    )
    if not names:
        kind = file.kvs.get("general.type", "unknown")
        raise BadInput(
            f"{path}: a GGUF file of type {kind!r} without {SUMS} tensors, not an importance matrix"
        )
    for key, kind in (
        (DATASETS, GGUFValueType.ARRAY),
        (CHUNK_COUNT, GGUFValueType.UINT32),
        (CHUNK_SIZE, GGUFValueType.UINT32),
    ):
        if file.kv_types.get(key, (None, None))[0] is not kind:
            raise BadInput(
                f"{path}: metadata {key} is missing or not of type "
                f"{kind.name}; compute the importance matrix again"
            )
    entries = {}
    for name in names:
        for tensor in (name + SUMS, name + COUNTS):
            if tensor not in file.tensors:
                raise BadInput(
                    f"{path}: tensor {tensor} is missing, but its counterpart "
                    "is there; compute the importance matrix again"
                )
            if file.tensors[tensor].kind is not Type.F32:
                raise BadInput(f"{path}: tensor {tensor} is {file.tensors[tensor].kind.name}, F32 expected")
        sums, counts = (np.array(file.raw(name + end)).reshape(-1).view("<f4") for end in (SUMS, COUNTS))
        if not counts.size or not sums.size or sums.size % counts.size or not np.isfinite(counts).all():
            raise BadInput(f"{path}: {name}: {sums.size} sums do not match {counts.size} counts")
        entries[name] = Entry(sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))
    datasets = tuple(str(name) for name in file.kvs[DATASETS])
    return ImportanceMatrix(entries, datasets, file.kvs[CHUNK_COUNT], file.kvs[CHUNK_SIZE])


class _Old:
    """The .dat format: int32 number of entries; each an int32-counted name, int32 calls, int32-counted
    float32 values; then, perhaps, int32 chunks and the int32-counted name of the text."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.left = path, file, os.fstat(file.fileno()).st_size

    def fail(self, what: str) -> BadInput:
        return BadInput(
            f"{self.path}: no importance matrix, or damaged: "
            f"{what}; expected llama.cpp's .gguf or old .dat format"
        )

    def bytes(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            raise self.fail(f"{what} of {count} bytes, {self.left} are left")
        self.left -= count
        return self.file.read(count)

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.bytes(4, what))[0])

    def text(self, what: str) -> str:
        length = self.number(f"the length of {what}")
        if length > MAX_KEY:
            raise self.fail(f"{what} of {length} bytes")
        try:
            return self.bytes(length, what).split(b"\0")[0].decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def read(self) -> ImportanceMatrix:
        entries: dict[str, Entry] = {}
        total = self.number("the number of entries")
        if total < 1:
            raise self.fail(f"{total} entries")
        for _ in range(total):
            name = self.text("a tensor name")
            calls, count = self.number(f"the calls of {name}"), self.number(f"the number of values of {name}")
            if not name.isprintable() or name in entries or count < 1:
                raise self.fail(
                    f"entry {len(entries) + 1} of {total}: a duplicate or unprintable name, or {count} values"
                )
            values = np.frombuffer(self.bytes(4 * count, f"the values of {name}"), "<f4")
            # Whether the values are of several matrices, only the model tells. Without calls they are means
            # already.
            entries[name] = Entry(values.reshape(1, -1), np.array([max(calls, 1)]))
        chunks = self.number("the number of chunks") if self.left else 0
        dataset = self.text("the name of the text") if self.left else ""
        return ImportanceMatrix(entries, (dataset,) if dataset else (), max(chunks, 0), 0)


def write_imatrix(path: Path, matrix: ImportanceMatrix, replace: bool = True) -> None:
    """llama.cpp's GGUF format, as llama-imatrix writes it; in place only when complete. Errors: BadInput
    where ``path`` is there by then and not to be replaced."""
    kvs: Kvs = {
        "general.type": ("imatrix", GGUFValueType.STRING),
        DATASETS: (list(matrix.datasets), GGUFValueType.ARRAY),
        CHUNK_COUNT: (matrix.chunk_count, GGUFValueType.UINT32),
        CHUNK_SIZE: (matrix.chunk_size, GGUFValueType.UINT32),
    }
    tensors = []
    for name, entry in sorted(matrix.entries.items()):
        several = len(entry.counts) > 1  # ggml does not write a last dimension of one
        for end, values in ((SUMS, entry.sums), (COUNTS, entry.counts.astype(np.float32)[:, None])):
            give: Callable[[], np.ndarray] = partial(np.asarray, values, np.float32)
            tensors.append(
                Planned(
                    name + end, values.shape if several else values.shape[1:], Type.F32, give, lambda: None
                )
            )
    with whole_file(path, replace) as part:
        write_gguf(part, kvs, tensors, threads=1)
