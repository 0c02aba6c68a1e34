"""A folder of safetensors whose tensors are written as they become ready, in any order and by several
threads, each at its place: the bytes are those of ``write_folder``, without a second copy on the disk."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from quantize.checkpoint.tensors import SHARD_BYTES, Entry, entry_bytes, header_bytes, named_shards


class PlacedFolder:
    """Files under ``folder`` for ``entries``. Errors: OSError where they cannot be written."""

    def __init__(self, folder: Path, entries: Iterable[Entry], shard_bytes: int = SHARD_BYTES):
        self._files: list[int] = []
        self._places: dict[str, tuple[int, int, Entry]] = {}
        self.total_bytes = 0
        for path, shard in named_shards(folder, entries, shard_bytes).items():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            self._files.append(file)
            header = header_bytes(shard)
            _write(file, header, 0)
            offset = len(header)
            for entry in shard:
                self._places[entry.name] = file, offset, entry
                offset += entry.size_bytes
                self.total_bytes += entry.size_bytes
        self._missing = set(self._places)

    def __enter__(self) -> "PlacedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            os.close(file)
        if kind is None and self._missing:
            raise AssertionError(f"{min(self._missing)} was not written")

    def put(self, name: str, values: Any) -> None:
        """``values``: a contiguous array of exactly the entry's bytes."""
        file, offset, entry = self._places[name]
        _write(file, entry_bytes(entry, values).data, offset)
        self._missing.discard(name)

    def put_part(self, name: str, values: Any, offset: int) -> int:
        """``values``: a contiguous array of the entry's bytes from ``offset`` on. Returns where they end; the
        parts of a tensor come in order."""
        file, start, entry = self._places[name]
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        end = offset + len(data)
        if end > entry.size_bytes:
            raise AssertionError(f"{name}: {end} bytes given for {entry.size_bytes}")
        _write(file, data.data, start + offset)
        if end == entry.size_bytes:
            self._missing.discard(name)
        return end


def _write(file: int, data: "bytes | memoryview", offset: int) -> None:
    """All of it, whatever a single call takes."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written
