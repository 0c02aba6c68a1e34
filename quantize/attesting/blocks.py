"""The tensors of a GGUF file against those that a source gives: made again chunk by chunk, compared block by
block, never more than a few chunks at once."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from gguf import GGML_QUANT_SIZES

from quantize.attesting.outcome import TensorDifference
from quantize.errors import StepFailed
from quantize.gguf.container.chunks import Clock, NotFinite, Planned, chunks, make
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.container.writer import Kvs, header, padded, part_kvs, part_path, split
from quantize.kernels.block_types import Type, tensor_bytes
from quantize.kernels.chosen import CHOSEN

#: chunks that are being made or wait for their turn, for each thread
AHEAD = 2
FLOATS = {Type.F32: "<f4", Type.F16: "<f2"}


@dataclass
class Derived:
    """``sha256``: of each part that the source gives, header included, in order."""

    blocks: int = 0
    differing: list[TensorDifference] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)


def derive(
    file: GgufFile,
    tensors: Sequence[Planned],
    threads: int,
    progress: Callable[[int], None],
    kvs: Kvs | None = None,
    split_max_bytes: int | None = None,
) -> Derived:
    """Make ``tensors`` again and hold each against that of ``file``. With ``kvs`` the parts of the file are
    hashed as the writer would write them; without, only tensors are compared.

    Errors: StepFailed where a value of the source is not finite or does not fit its type; Unsupported where
    nothing here makes a type.
    """
    out = Derived()
    parts = split(tensors, split_max_bytes) if kvs is not None else [list(tensors)]
    for kind in {tensor.kind for tensor in tensors}:
        CHOSEN.prepare(kind)
    with ThreadPoolExecutor(threads, thread_name_prefix="derive") as pool:
        for index, part in enumerate(parts):
            whole = hashlib.sha256()
            if kvs is not None:
                whole.update(header(part_kvs(kvs, index, len(parts), len(tensors)), part))
            for tensor in part:
                found = _compare(file, tensor, pool, threads, whole if kvs is not None else None, progress)
                if found is not None:
                    out.differing.append(found)
                out.blocks += tensor.size_bytes // GGML_QUANT_SIZES[tensor.kind][1]
                whole.update(bytes(padded(tensor.size_bytes) - tensor.size_bytes))
            out.sha256.append(whole.hexdigest())
    known = {tensor.name for tensor in tensors}
    out.differing += [
        TensorDifference(name, tensor.kind.name, why="the source has no tensors for it")
        for name, tensor in file.tensors.items()
        if name not in known
    ]
    return out


def part_names(file: GgufFile, count: int) -> list[str]:
    """Of the parts as they would be written under the name of ``file``."""
    if count == 1:
        return [file.path.name]
    stem = file.path.name.rsplit("-00001-of-", 1)[0]
    whole = file.path.with_name(f"{stem}.gguf")
    return [part_path(whole, index, count).name for index in range(count)]


def rows_of(file: GgufFile, tensor: Planned) -> tuple[np.ndarray | None, str]:
    """The bytes of ``tensor`` in ``file`` (rows, bytes of a row) uint8; or why they cannot be compared."""
    found = file.tensors.get(tensor.name)
    if found is None:
        return None, "is missing, and the source has it"
    if found.shape != tensor.shape:
        return None, f"has shape {list(found.shape)}, the source gives {list(tensor.shape)}"
    if found.kind is not tensor.kind:
        return None, f"is {found.kind.name}, the recipe gives {tensor.kind.name}"
    return file.raw(tensor.name), ""


def _compare(
    file: GgufFile,
    tensor: Planned,
    pool: ThreadPoolExecutor,
    threads: int,
    whole: "hashlib._Hash | None",
    progress: Callable[[int], None],
) -> TensorDifference | None:
    theirs, why = rows_of(file, tensor)
    if theirs is None and whole is None:
        return TensorDifference(tensor.name, tensor.kind.name, why=why)
    differing, largest = 0, 0.0
    for first, made in _made(tensor, pool, threads):
        if whole is not None:
            whole.update(made.data)
        if theirs is not None:
            count, worst = block_difference(tensor.kind, made, theirs[first : first + len(made)])
            differing, largest = differing + count, max(largest, worst)
        progress(len(made) * tensor.shape[-1])
    if theirs is None:
        return TensorDifference(tensor.name, tensor.kind.name, why=why)
    if not differing:
        return None
    of = tensor_bytes(tensor.kind, tensor.shape) // GGML_QUANT_SIZES[tensor.kind][1]
    unit = "blocks" if GGML_QUANT_SIZES[tensor.kind][0] > 1 else "values"
    return TensorDifference(tensor.name, tensor.kind.name, differing, of, unit, largest)


def _made(tensor: Planned, pool: ThreadPoolExecutor, threads: int):  # type: ignore[no-untyped-def]
    """(number of the first row, rows as bytes) of every chunk, in order."""
    waiting: deque[tuple[int, Future[list[np.ndarray | StepFailed]]]] = deque()

    def next_one() -> tuple[int, np.ndarray]:
        first, future = waiting.popleft()
        try:
            (made,) = future.result()
        except NotFinite:
            tensor.diagnose()
            raise StepFailed(
                f"tensor {tensor.name} holds NaN or Inf values; the checkpoint is damaged"
            ) from None
        if isinstance(made, StepFailed):
            raise StepFailed(f"tensor {tensor.name}: {made}")
        return first, made

    for first, rows in chunks([tensor]):
        waiting.append((first, pool.submit(make, rows, first, [(tensor, Clock())], CHOSEN)))
        if len(waiting) > AHEAD * threads:
            yield next_one()
    while waiting:
        yield next_one()


def block_difference(kind: Type, made: np.ndarray, theirs: np.ndarray) -> tuple[int, float]:
    """How many blocks of two arrays (rows, bytes of a row) uint8 differ, and the largest difference of their
    values; infinite where one is no number."""
    if np.array_equal(made, theirs):
        return 0, 0.0
    size = GGML_QUANT_SIZES[kind][1]
    a, b = made.reshape(-1, size), np.ascontiguousarray(theirs).reshape(-1, size)
    bad = np.flatnonzero((a != b).any(1))
    with np.errstate(all="ignore"):
        apart = np.abs(_values(kind, a[bad]) - _values(kind, b[bad]))
    worst = float(apart.max(initial=0.0))  # NaN where one of them is
    return len(bad), worst if np.isfinite(worst) else float("inf")


def _values(kind: Type, blocks: np.ndarray) -> np.ndarray:
    """(blocks, weights) float32."""
    from gguf.quants import dequantize

    if kind in FLOATS:
        return np.ascontiguousarray(blocks).view(FLOATS[kind]).astype(np.float32)
    return np.asarray(dequantize(np.ascontiguousarray(blocks), kind), np.float32)
