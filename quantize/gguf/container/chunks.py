"""Rows of a tensor become the bytes of one or several types: read, widened to float32 once, quantized."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantize.errors import StepFailed
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.block_types import Type, row_bytes, tensor_bytes
from quantize.kernels.ggml import bf16_to_f16, round_through, widen

CHUNK_WEIGHTS = 1 << 18
WHOLE_ROWS = 16  # compiled kernels take as many at once where there are importances

#: Bits of the largest finite value, without the sign.
_LARGEST = {Type.BF16: 0x7F7F, Type.F16: 0x7BFF}


@dataclass(frozen=True)
class Planned:
    """One tensor to be written. ``shape`` rows first.

    ``load`` gives its values, shaped (rows, columns), in a float dtype or as uint16 bit patterns of bf16;
    called once, when its turn comes. ``matrix``: the same of one of the matrices of ``shape[:-2]``, by its
    number; where there is one, it is called for each in turn, and never ``load``. ``via``: round the values
    to that type first. ``importance``: float32 (matrices, columns), one row for each matrix of
    ``shape[:-2]``. ``diagnose`` is called when a value is not finite, and raises an error that says where.
    """

    name: str
    shape: tuple[int, ...]
    kind: Type
    load: Callable[[], np.ndarray]
    diagnose: Callable[[], None]
    via: Type | None = None
    importance: np.ndarray | None = None
    matrix: Callable[[int], np.ndarray] | None = None
    #: (first row, last row, not included) -> their bytes in ``kind``, where the source has such blocks
    blocks: Callable[[int, int], np.ndarray] | None = None

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.kind, self.shape)


class NotFinite(Exception):
    pass


class Clock:
    """Seconds spent in one kind of work by all threads together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def chunks(tensors: Sequence[Planned]) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, values of consecutive rows) of one tensor, however many files it goes into.

    Where one of ``tensors`` has importances, or matrices are read one by one, none goes across the boundary
    of two matrices. What is read is let go with the last of its chunks.
    """
    shape = tensors[0].shape
    columns = shape[-1]
    matrix = shape[-2] if len(shape) > 1 else 1
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    step = max(1, CHUNK_WEIGHTS // max(1, columns))
    step -= step % WHOLE_ROWS if step > WHOLE_ROWS else 0
    if tensors[0].matrix is None and all(tensor.importance is None for tensor in tensors):
        matrix = max(1, rows)
    for start, values in _read(tensors, rows):
        for begin in range(0, len(values), matrix):
            end = min(begin + matrix, len(values))
            for first in range(begin, end, step):
                yield start + first, values[first : min(first + step, end)]


def _read(tensors: Sequence[Planned], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, values) of all rows, or of each matrix."""
    first = tensors[0]
    if all(tensor.blocks is not None for tensor in tensors):  # nobody looks at the values
        yield 0, np.broadcast_to(np.uint16(0), (rows, first.shape[-1]))
    elif first.matrix is None:
        yield 0, first.load()
    else:
        for index in range(int(np.prod(first.shape[:-2]))):
            values = first.matrix(index)
            assert values.shape == first.shape[-2:], f"{first.name}: {values.shape} read of {first.shape}"
            yield index * first.shape[-2], values


def chunk_bytes(tensor: Planned, rows: int) -> int:
    return rows * row_bytes(tensor.kind, tensor.shape[-1])


def make(
    rows: np.ndarray,
    first: int,
    tensors: Sequence[tuple[Planned, Clock]],
    quantizer: BlockQuantizer,
) -> list[np.ndarray | StepFailed]:
    """The rows, of which ``first`` is the number of the first, as the bytes of each tensor's type: (rows,
    bytes of a row) uint8, or why that cannot be. Runs in a thread of a pool.

    Errors: NotFinite.
    """
    made: list[np.ndarray | StepFailed] = []
    widened: np.ndarray | None = None
    for tensor, clock in tensors:
        out = np.empty((rows.shape[0], row_bytes(tensor.kind, rows.shape[1])), np.uint8)
        made.append(out)
        if tensor.blocks is not None:
            out[...] = tensor.blocks(first, first + rows.shape[0])
            continue
        if _copied(rows, tensor, out):
            continue
        if widened is None:
            widened = _scratch("widened", rows)
            _widen(rows, widened)
        values = widened
        if tensor.via is not None:
            if len(tensors) > 1:  # the others want them as they are
                values = _scratch("rounded", rows)
                values[...] = widened
            round_through(values, tensor.via)
        importance = tensor.importance[first // tensor.shape[-2]] if tensor.importance is not None else None
        begun = time.perf_counter()
        try:
            quantizer.quantize(tensor.kind, values, out, importance)
        except StepFailed as error:
            made[-1] = error
        clock.add(time.perf_counter() - begun)
    return made


def _copied(rows: np.ndarray, tensor: Planned, out: np.ndarray) -> bool:
    """Whether ``out`` could be filled without float32 in between."""
    kind = tensor.kind
    if tensor.via is not None:
        return False
    if kind is Type.F32:
        _widen(rows, out.view(np.float32))
        return True
    looked_up = kind is Type.F16 and rows.dtype == np.uint16
    if not (looked_up or rows.dtype == {Type.BF16: np.uint16, Type.F16: np.float16}.get(kind)):
        return False
    bits = out.view(np.uint16)
    if looked_up:
        bf16_to_f16().take(rows, out=bits, mode="wrap")  # "raise" would go by another buffer
    else:
        bits[...] = rows.view(np.uint16)
    # NaN, Inf, or more than F16 holds: the long way finds out which.
    return bool(np.bitwise_and(bits, 0x7FFF).max(initial=0) <= _LARGEST[kind])


_buffers = threading.local()


def _scratch(name: str, rows: np.ndarray) -> np.ndarray:
    """float32 of the shape of ``rows``, this thread's own, used again by the next chunk."""
    buffer: np.ndarray | None = getattr(_buffers, name, None)
    if buffer is None or buffer.size < rows.size:
        buffer = np.empty(max(rows.size, CHUNK_WEIGHTS), np.float32)
        setattr(_buffers, name, buffer)
    return buffer[: rows.size].reshape(rows.shape)


def _widen(rows: np.ndarray, out: np.ndarray) -> None:
    widen(rows, out)
    # The sum of a float32 array is finite unless an element is not, or it overflows: look closer only then.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(out.sum())
    if suspicious and not np.isfinite(out).all():
        raise NotFinite
