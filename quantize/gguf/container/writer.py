"""Writes a GGUF file in one pass: header first, then every tensor in order, chunk by chunk.

Every size is known before the first byte is written, so nothing is written twice. Chunks of rows go through a
pool of threads (read, widen to float32, quantize), and the main thread writes them in order while later ones
are being made and earlier ones hashed: what is in flight is bounded by ``IN_FLIGHT_BYTES``, whatever the
model's size. Source: the GGUF specification, version 3.
"""

import errno
import hashlib
import os
import shutil
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFValueType

from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.block_types import Type, row_bytes, tensor_bytes
from quantize.kernels.chosen import CHOSEN
from quantize.kernels.ggml import bf16_to_f16, round_through, widen

ALIGNMENT = 32
VERSION = 3
CHUNK_WEIGHTS = 1 << 18
WHOLE_ROWS = 16  # compiled kernels take as many at once where there are importances
IN_FLIGHT_BYTES = 1 << 26

#: metadata: key -> (value, type); arrays as lists
Kvs = Mapping[str, tuple[Any, GGUFValueType]]

_PACKING: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One tensor to be written. ``shape`` rows first.

    ``load`` gives its values, shaped (rows, columns), in a float dtype or as uint16 bit patterns of bf16;
    called once, when its turn comes. ``via``: round the values to that type first. ``importance``: float32
    (matrices, columns), one row for each matrix of ``shape[:-2]``. ``diagnose`` is called when a value is not
    finite, and raises an error that says where.
    """

    name: str
    shape: tuple[int, ...]
    kind: Type
    load: Callable[[], np.ndarray]
    diagnose: Callable[[], None]
    via: Type | None = None
    importance: np.ndarray | None = None

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.kind, self.shape)


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
    """Write ``path``, or ``path``-00001-of-0000N.gguf and so on where ``split_max_bytes`` of tensor data are
    exceeded.

    ``progress`` gets the number of weights done after each chunk. Errors: StepFailed for a value that is not
    finite or does not fit its type; OSError (disk full) before any work where the space is known to be
    missing; Unsupported for a type that ``quantizer`` does not make.
    """
    parts = split(tensors, split_max_bytes)
    total = sum(padded(t.size_bytes) for t in tensors)
    if shutil.disk_usage(path.parent).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    files: dict[Path, str] = {}
    checksums: dict[str, int] = {}
    clock = _Clock()
    for kind in {t.kind for t in tensors}:
        if kind not in quantizer.kinds:
            raise Unsupported(f"{quantizer.name} makes no tensors of type {kind.name}; choose another type")
        quantizer.prepare(kind)
    with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
        try:
            for index, part in enumerate(parts):
                name = path if len(parts) == 1 else part_path(path, index, len(parts))
                with open(name, "wb", buffering=1 << 20) as file, _Hashed(file) as hashed:
                    hashed.write(header(part_kvs(kvs, index, len(parts), len(tensors)), part))
                    checksums |= _write_data(hashed, part, pool, quantizer, clock, progress)
                files[name] = hashed.hexdigest()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Written(files, sum(t.size_bytes for t in tensors), checksums, clock.seconds)


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


class _NotFinite(Exception):
    pass


class _Clock:
    """Seconds spent in one kind of work by all threads together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def _write_data(
    file: _Hashed,
    tensors: Iterable[Planned],
    pool: ThreadPoolExecutor,
    quantizer: BlockQuantizer,
    clock: _Clock,
    progress: Callable[[int], None],
) -> dict[str, int]:
    """CRC-32 by tensor."""
    checksums: dict[str, int] = {}
    # tensor, chunk, weights, padding after it
    waiting: deque[tuple[Planned, Future[np.ndarray], int, int]] = deque()
    in_flight = 0

    def write_one() -> None:
        nonlocal in_flight
        tensor, future, weights, padding = waiting.popleft()
        try:
            data = future.result()
        except _NotFinite:
            tensor.diagnose()
            raise StepFailed(
                f"tensor {tensor.name} holds NaN or Inf values; the checkpoint is damaged"
            ) from None
        except StepFailed as error:
            raise StepFailed(f"tensor {tensor.name}: {error}") from None
        bytes_of_rows = data.reshape(-1).data
        checksums[tensor.name] = zlib.crc32(bytes_of_rows, checksums.get(tensor.name, 0))
        file.write(bytes_of_rows)
        if padding:
            file.write(bytes(padding))
        in_flight -= data.nbytes
        progress(weights)

    for tensor in tensors:
        values = tensor.load()
        for first, last in _chunks(tensor):
            rows = values[first:last]
            end_padding = padded(tensor.size_bytes) - tensor.size_bytes if last == values.shape[0] else 0
            size = rows.shape[0] * row_bytes(tensor.kind, tensor.shape[-1])
            while waiting and in_flight + size > IN_FLIGHT_BYTES:
                write_one()
            importance = (
                tensor.importance[first // tensor.shape[-2]] if tensor.importance is not None else None
            )
            waiting.append(
                (
                    tensor,
                    pool.submit(_make, rows, tensor, importance, quantizer, clock),
                    rows.size,
                    end_padding,
                )
            )
            in_flight += size
        del values
    while waiting:
        write_one()
    return checksums


def _chunks(tensor: Planned) -> Iterable[tuple[int, int]]:
    """Ranges of rows, none across the boundary of two matrices (each has its own importances)."""
    columns = tensor.shape[-1]
    matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    step = max(1, CHUNK_WEIGHTS // max(1, columns))
    step -= step % WHOLE_ROWS if step > WHOLE_ROWS else 0
    if tensor.importance is None:
        matrix = max(1, rows)
    for start in range(0, rows, matrix):
        for first in range(start, start + matrix, step):
            yield first, min(first + step, start + matrix)


_scratch = threading.local()

#: Bits of the largest finite value, without the sign.
_LARGEST = {Type.BF16: 0x7F7F, Type.F16: 0x7BFF}


def _make(
    rows: np.ndarray,
    tensor: Planned,
    importance: np.ndarray | None,
    quantizer: BlockQuantizer,
    clock: _Clock,
) -> np.ndarray:
    """One chunk as the bytes of ``tensor.kind``: (rows, bytes of a row) uint8. Runs in a thread of the
    pool."""
    kind = tensor.kind
    out = np.empty((rows.shape[0], row_bytes(kind, rows.shape[1])), np.uint8)
    if kind is Type.F32 and tensor.via is None:
        _widen(rows, out.view(np.float32))
        return out
    looked_up = kind is Type.F16 and rows.dtype == np.uint16
    if tensor.via is None and (
        looked_up or rows.dtype == {Type.BF16: np.uint16, Type.F16: np.float16}.get(kind)
    ):
        bits = out.view(np.uint16)
        if looked_up:
            bf16_to_f16().take(rows, out=bits, mode="wrap")  # "raise" would go by another buffer
        else:
            bits[...] = rows.view(np.uint16)
        if np.bitwise_and(bits, 0x7FFF).max(initial=0) <= _LARGEST[kind]:
            return out
        # NaN, Inf, or more than F16 holds: the long way finds out which.
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < rows.size:
        buffer = _scratch.buffer = np.empty(max(rows.size, CHUNK_WEIGHTS), np.float32)
    values = buffer[: rows.size].reshape(rows.shape)
    _widen(rows, values)
    if tensor.via is not None:
        round_through(values, tensor.via)
    begun = time.perf_counter()
    quantizer.quantize(kind, values, out, importance)
    clock.add(time.perf_counter() - begun)
    return out


def _widen(rows: np.ndarray, out: np.ndarray) -> None:
    widen(rows, out)
    # The sum of a float32 array is finite unless an element is not, or it overflows: look closer only then.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(out.sum())
    if suspicious and not np.isfinite(out).all():
        raise _NotFinite
