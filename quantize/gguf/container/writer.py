"""Writes GGUF files in one pass: header first, then every tensor in order, chunk by chunk.

Every size is known before the first byte is written, so nothing is written twice. Chunks of rows go through a
pool of threads (read, widen to float32, quantize), and the main thread writes them in order while later ones
are being made and earlier ones hashed: what is in flight, source and result, is bounded by
``IN_FLIGHT_BYTES`` and one matrix, whatever the model's size. Experts' matrices are taken one by one. Several
files of the same tensors are written side by side: a chunk is read and widened once for all of them, and each
gets the bytes that it would get alone. Source: the GGUF specification, version 3.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFValueType

from quantize.errors import BadInput, QuantwrightError, StepFailed, Unsupported
from quantize.gguf.container.chunks import Clock, NotFinite, Planned, chunk_bytes, chunks, make
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.chosen import CHOSEN

__all__ = ["File", "Kvs", "Planned", "Written", "header", "part_path", "write_gguf", "write_together"]

ALIGNMENT = 32
VERSION = 3
IN_FLIGHT_BYTES = 1 << 26

#: metadata: key -> (value, type); arrays as lists
Kvs = Mapping[str, tuple[Any, GGUFValueType]]

_PACKING: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """What is to be written to ``path``, or to ``path``-00001-of-0000N.gguf and so on where
    ``split_max_bytes`` of tensor data are exceeded."""

    path: Path
    kvs: Kvs
    tensors: Sequence[Planned]
    split_max_bytes: int | None = None


@dataclass(frozen=True)
class Written:
    files: dict[Path, str]  # and their sha256
    data_bytes: int  # of tensors, without padding
    checksums: dict[str, int]  # CRC-32 of each tensor's bytes
    quantizer_seconds: float  # inside block quantizers, summed over threads


def write_gguf(
    path: Path,
    kvs: Kvs,
    tensors: Sequence[Planned],
    *,
    threads: int,
    split_max_bytes: int | None = None,
    quantizer: BlockQuantizer = CHOSEN,
    progress: Callable[[int], None] = lambda weights: None,
) -> Written:
    """Write one ``File``.

    ``progress`` gets the number of weights done after each chunk. Errors: StepFailed for a value that is not
    finite or does not fit its type; OSError (disk full) before any work where the space is known to be
    missing; Unsupported for a type that ``quantizer`` does not make.
    """
    file = File(path, kvs, tensors, split_max_bytes)
    (written,) = write_together([file], threads=threads, quantizer=quantizer, progress=progress)
    if isinstance(written, Exception):
        raise written
    return written


def write_together(
    files: Sequence[File],
    *,
    threads: int,
    quantizer: BlockQuantizer = CHOSEN,
    progress: Callable[[int], None] = lambda weights: None,
) -> list[Written | Exception]:
    """Write all ``files``, which hold tensors of the same names, shapes and values in the same order (their
    types, importances and roundings may differ): ``load`` of the first one's is called for all.

    What is wrong with one file (an error of ``write_gguf``) stands in its place, and the others are written
    all the same.
    """
    names = [[(tensor.name, tensor.shape) for tensor in file.tensors] for file in files]
    assert all(each == names[0] for each in names), "files of different tensors cannot be written together"
    outputs = [_Output(file) for file in files]
    _check_space(outputs)
    for output in outputs:
        with output:
            _check_kinds(output.file, quantizer)
    with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
        try:
            _write_data(outputs, pool, quantizer, progress)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            for output in outputs:
                output.close()
            raise
    return [output.result() for output in outputs]


def _check_kinds(file: File, quantizer: BlockQuantizer) -> None:
    for kind in {t.kind for t in file.tensors}:
        if kind not in quantizer.kinds:
            raise Unsupported(f"{quantizer.name} makes no tensors of type {kind.name}; choose another type")
        quantizer.prepare(kind)


def _check_space(outputs: Iterable["_Output"]) -> None:
    """Each file has the space that those before it leave."""
    taken: dict[int, int] = {}  # file system -> bytes
    for output in outputs:
        with output:
            folder = output.file.path.parent
            disk = os.stat(folder).st_dev
            total = sum(padded(t.size_bytes) for t in output.file.tensors)
            if shutil.disk_usage(folder).free < taken.get(disk, 0) + total:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken[disk] = taken.get(disk, 0) + total


def split(tensors: Sequence[Planned], max_bytes: int | None) -> list[list[Planned]]:
    """Tensors in order, a new part begun where the next would exceed ``max_bytes``."""
    parts: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if max_bytes is not None and parts[-1] and size + padded(tensor.size_bytes) > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += padded(tensor.size_bytes)
    return parts


def part_path(path: Path, index: int, count: int) -> Path:
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}.gguf")


def part_kvs(kvs: Kvs, index: int, count: int, tensors: int) -> Kvs:
    """All metadata goes into the first part; each part says which it is."""
    if count == 1:
        return kvs
    return {
        **(kvs if index == 0 else {}),
        "split.no": (index, GGUFValueType.UINT16),
        "split.count": (count, GGUFValueType.UINT16),
        "split.tensors.count": (tensors, GGUFValueType.INT32),
    }


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def header(kvs: Kvs, tensors: Iterable[Planned]) -> bytes:
    """Everything before the tensor data, padding included."""
    tensors = list(tensors)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(kvs)))
    for key, (value, kind) in kvs.items():
        out += _string(key)
        out += struct.pack("<I", kind)
        out += pack_value(key, value, kind)
    offset = 0
    for tensor in tensors:
        out += _string(tensor.name)
        out += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        out += struct.pack("<IQ", tensor.kind, offset)
        offset += padded(tensor.size_bytes)
    out += bytes(padded(len(out)) - len(out))
    return bytes(out)


def _string(text: str | bytes) -> bytes:
    data = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_value(key: str, value: Any, kind: GGUFValueType) -> bytes:
    """The bytes of a metadata value. Errors: BadInput where it does not fit its type."""
    try:
        if kind is GGUFValueType.STRING:
            return _string(value)
        if kind is not GGUFValueType.ARRAY:
            return struct.pack("<" + _PACKING[kind], value)
        element = GGUFValueType.get_type(value[0]) if len(value) else GGUFValueType.STRING
        element = GGUFValueType.UINT8 if isinstance(value, bytes) else element
        start = struct.pack("<IQ", element, len(value))
        if element is GGUFValueType.STRING:
            return start + b"".join(map(_string, value))
        return start + struct.pack(f"<{len(value)}{_PACKING[element]}", *value)
    except (struct.error, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"metadata {key}: {str(value)[:80]!r} cannot be written as {kind.name} ({error})"
        ) from None


class _Hashed:
    """Writes to ``file``, and meanwhile hashes what was written before. Use as a context manager."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._last: Future[None] = self._thread.submit(lambda: None)

    def __enter__(self) -> "_Hashed":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()

    def write(self, data: bytes | memoryview) -> None:
        """``data`` must not change any more."""
        self._file.write(data)
        self._last.result()  # no more than one waits
        self._last = self._thread.submit(self._sha256.update, data)

    def hexdigest(self) -> str:
        self._last.result()
        return self._sha256.hexdigest()


class _Output:
    """A file that is being written. As a context manager: an error in the block is this file's alone."""

    def __init__(self, file: File):
        self.file = file
        self.clock = Clock()
        self.error: Exception | None = None
        self._parts = split(file.tensors, file.split_max_bytes)
        self._begin = {part[0].name if part else "": index for index, part in enumerate(self._parts)}
        self._files: dict[Path, str] = {}
        self._checksums: dict[str, int] = {}
        self._open = contextlib.ExitStack()
        self._part: tuple[Path, _Hashed] | None = None

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, (QuantwrightError, OSError)):
            return False
        self.error = self.error or error
        with contextlib.suppress(OSError):
            self.close()
        for path in self._files:
            with contextlib.suppress(OSError):
                path.unlink()
        return True

    def write(self, tensor: Planned, data: np.ndarray, padding: int) -> None:
        """The next bytes of ``tensor``; where it is the first of a part, that part is begun."""
        if tensor.name in self._begin:
            self._next_part(self._begin.pop(tensor.name))
        assert self._part is not None
        bytes_of_rows = data.reshape(-1).data
        self._checksums[tensor.name] = zlib.crc32(bytes_of_rows, self._checksums.get(tensor.name, 0))
        self._part[1].write(bytes_of_rows)
        if padding:
            self._part[1].write(bytes(padding))

    def _next_part(self, index: int) -> None:
        self.close()
        file, part, count = self.file, self._parts[index], len(self._parts)
        path = file.path if count == 1 else part_path(file.path, index, count)
        binary = self._open.enter_context(open(path, "wb", buffering=1 << 20))  # noqa: SIM115
        self._files[path] = ""
        hashed = self._open.enter_context(_Hashed(binary))
        self._part = path, hashed
        hashed.write(header(part_kvs(file.kvs, index, count, len(file.tensors)), part))

    def close(self) -> None:
        """Errors: OSError where the last bytes cannot be written."""
        if self._part is not None:
            (path, hashed), self._part = self._part, None
            with self._open:
                self._files[path] = hashed.hexdigest()

    def result(self) -> Written | Exception:
        with self:
            if self.error is None and "" in self._begin:  # no tensors at all
                self._next_part(0)
            self.close()
        data_bytes = sum(t.size_bytes for t in self.file.tensors)
        return self.error or Written(self._files, data_bytes, self._checksums, self.clock.seconds)


@dataclass(frozen=True)
class _Chunk:
    """Rows of one tensor on their way to the files that are still written."""

    outputs: list[_Output]
    tensors: list[Planned]
    made: "Future[list[np.ndarray | StepFailed]]"
    weights: int
    size_bytes: int
    last: bool


def _write_data(
    outputs: Sequence[_Output],
    pool: ThreadPoolExecutor,
    quantizer: BlockQuantizer,
    progress: Callable[[int], None],
) -> None:
    waiting: deque[_Chunk] = deque()
    in_flight = 0

    def write_one() -> None:
        nonlocal in_flight
        chunk = waiting.popleft()
        try:
            made = chunk.made.result()
        except NotFinite:
            tensor = chunk.tensors[0]
            tensor.diagnose()
            raise StepFailed(
                f"tensor {tensor.name} holds NaN or Inf values; the checkpoint is damaged"
            ) from None
        for output, tensor, data in zip(chunk.outputs, chunk.tensors, made, strict=True):
            with output:
                if isinstance(data, StepFailed):
                    raise StepFailed(f"tensor {tensor.name}: {data}") from None
                if output.error is None:
                    output.write(
                        tensor, data, padded(tensor.size_bytes) - tensor.size_bytes if chunk.last else 0
                    )
        in_flight -= chunk.size_bytes
        progress(chunk.weights)

    for index in range(len(outputs[0].file.tensors)):
        writing = [output for output in outputs if output.error is None]
        if not writing:
            return
        tensors = [output.file.tensors[index] for output in writing]
        total = int(np.prod(tensors[0].shape[:-1], dtype=np.int64))
        for first, rows in chunks(tensors):
            size = rows.nbytes + sum(chunk_bytes(tensor, rows.shape[0]) for tensor in tensors)
            while waiting and in_flight + size > IN_FLIGHT_BYTES:
                write_one()
            clocks = [output.clock for output in writing]
            made = pool.submit(make, rows, first, list(zip(tensors, clocks, strict=True)), quantizer)
            waiting.append(_Chunk(writing, tensors, made, rows.size, size, first + len(rows) == total))
            in_flight += size
            del rows
    while waiting:
        write_one()
