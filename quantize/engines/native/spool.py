"""Finished tensors wait in one file until all are there, and become the artifact's shards."""

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import Entry, write_folder
from quantize.dtypes import STORED

_NAMES = {"int32": "I32", "float16": STORED["float16"], "int64": "I64", "uint8": "U8", "int8": "I8"}


class Spool:
    """A file under ``folder``; what is added is read back through a memory map."""

    def __init__(self, folder: Path):
        self._path = folder / "tensors"
        self._entries: dict[str, tuple[Entry, int]] = {}
        self._bytes = 0
        self._file: BinaryIO | None = open(self._path, "wb")  # noqa: SIM115

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, name: str, array: np.ndarray, dtype: str = "") -> None:
        """``dtype``: safetensors' name, where ``array`` holds raw bits of it."""
        assert self._file is not None
        entry = Entry(name, dtype or _NAMES[str(array.dtype)], array.shape)
        self._entries[name] = entry, self._bytes
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._bytes += entry.size_bytes

    def write(self, checkpoint: Checkpoint, replaced: frozenset[str], stage: Path) -> int:
        """The artifact's weights: those that were added, and the source's others (not ``replaced``) bit for
        bit. Returns the bytes of tensor data."""
        assert self._file is not None
        self._file.close()
        self._file = None
        data = np.memmap(self._path, np.uint8, "r") if self._bytes else np.empty(0, np.uint8)
        mine = {name: entry for name, (entry, _) in self._entries.items()}
        others = {
            name: Entry(name, info.dtype, info.shape)
            for name, info in checkpoint.tensors.items()
            if name not in replaced and name not in mine
        }

        def read(name: str) -> Any:
            if name in others:
                return np.array(checkpoint.read(name))
            entry, start = self._entries[name]
            return data[start : start + entry.size_bytes]

        together = {**mine, **others}
        return write_folder(stage, [together[name] for name in sorted(together)], read)
