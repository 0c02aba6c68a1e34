"""A folder of safetensors whose tensors are written as they become ready, in any order and by several
threads, each at its place: the bytes are those of ``write_folder``, without a second copy on the disk."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any

import numpy as np

from quantize.checkpoint.tensors import SHARD_BYTES, Entry, entry_bytes, header_bytes, named_shards
from quantize.hashes import update_from

#: so that who hashes a large tensor's file need not wait until it is all there
WRITTEN_AT_ONCE = 1 << 24


class PlacedFolder:
    """Files under ``folder`` for ``entries``, whose ``names`` are in the order of the files. ``hashing``: a
    thread takes the files' SHA-256 beside the writing, which is worth it where they are written in about that
    order; ``sha256`` holds those that it finished by the end, by file name. Errors: OSError where files
    cannot be written."""

    def __init__(
        self,
        folder: Path,
        entries: Iterable[Entry],
        shard_bytes: int = SHARD_BYTES,
        *,
        hashing: bool = False,
    ):
        self.names: list[str] = []
        self.sha256: dict[str, str] = {}
        self.total_bytes = 0
        self._files: list[_File] = []
        self._places: dict[str, tuple[_File, int, Entry]] = {}
        for path, shard in named_shards(folder, entries, shard_bytes).items():
            file = _File(path)
            self._files.append(file)
            header = header_bytes(shard)
            file.write(header, 0)
            offset = len(header)
            for entry in shard:
                self.names.append(entry.name)
                self._places[entry.name] = file, offset, entry
                offset += entry.size_bytes
                self.total_bytes += entry.size_bytes
            file.size = offset
        self._missing = set(self._places)
        self._failed: OSError | None = None
        self._hashing = Thread(target=self._hash, daemon=True) if hashing else None
        if self._hashing:
            self._hashing.start()

    def __enter__(self) -> "PlacedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.no_more()
        if self._hashing:
            self._hashing.join()
        for file in self._files:
            os.close(file.number)
        if kind is None and self._failed:
            raise self._failed
        if kind is None and self._missing:
            raise AssertionError(f"{min(self._missing)} was not written")

    def _hash(self) -> None:
        """File after file. Those that are not begun by the end are left: several at a time are faster."""
        try:
            for file in self._files:
                if file.ended or (digest := file.digest()) is None:
                    return
                self.sha256[file.path.name] = digest
        except OSError as error:  # what the system says once it may not say again
            self._failed = error

    def put(self, name: str, values: Any) -> None:
        """``values``: a contiguous array of exactly the entry's bytes."""
        file, offset, entry = self._places[name]
        file.write(entry_bytes(entry, values).data, offset)
        self._missing.discard(name)

    def put_part(self, name: str, values: Any, offset: int) -> int:
        """``values``: a contiguous array of the entry's bytes from ``offset`` on. Returns where they end; the
        parts of a tensor come in order."""
        file, start, entry = self._places[name]
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        end = offset + len(data)
        if end > entry.size_bytes:
            raise AssertionError(f"{name}: {end} bytes given for {entry.size_bytes}")
        file.write(data.data, start + offset)
        if end == entry.size_bytes:
            self._missing.discard(name)
        return end


class _File:
    """One file that is written at any places, and from its beginning as far as it is whole is read again."""

    def __init__(self, path: Path):
        self.path, self.size, self.ended = path, 0, False
        self.number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._whole = 0  # bytes from the beginning on
        self._beyond: dict[int, int] = {}  # start -> end of what was written further on
        self._changed = Condition()

    def write(self, data: "bytes | memoryview", offset: int) -> None:
        """All of it, whatever a single call takes."""
        view = memoryview(data)
        while len(view):
            written = os.pwrite(self.number, view[:WRITTEN_AT_ONCE], offset)
            with self._changed:
                self._beyond[offset] = offset + written
                while self._whole in self._beyond:
                    self._whole = self._beyond.pop(self._whole)
                    self._changed.notify()
            view, offset = view[written:], offset + written

    def no_more(self) -> None:
        """Nothing more is written, whether the file is whole or not."""
        with self._changed:
            self.ended = True
            self._changed.notify()

    def digest(self) -> str | None:
        """SHA-256, taken as the file grows, while the disk writes what was hashed; None where it ends before
        it is whole. Errors: OSError."""
        digest, done = sha256(), 0
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(os.fdatasync, self.number)
            while done < self.size:
                end = self._grown(done)
                if end == done or update_from(digest, self.number, done, end) < end:
                    return None
                done = end
                if writing.done():
                    writing.result()
                    writing = pool.submit(os.fdatasync, self.number)
            writing.result()
        return digest.hexdigest()

    def _grown(self, known: int) -> int:
        """How many bytes from the beginning are whole, once that is more than ``known`` or does not grow."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole > known or self.ended)
            return self._whole
