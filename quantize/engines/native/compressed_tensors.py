"""Weights in the schemes of compressed-tensors, rounded without calibration: tensors are read, rounded and
written several at a time, each straight to its place in the artifact. The model is never built."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.placed import PlacedFolder
from quantize.checkpoint.tensors import Entry
from quantize.dtypes import to_float32
from quantize.engines.base import Computed, Engine
from quantize.engines.native.activation_scales import Measured
from quantize.engines.native.pieces import pieces
from quantize.errors import QuantwrightError, StepFailed
from quantize.formats.compressed_tensors import BLOCK, INPUTS, CtFormat
from quantize.hf.matrices import Linear, Place
from quantize.kernels.grid import grid_search
from quantize.kernels.native import load
from quantize.kernels.rounded import TYPES, RowRounder
from quantize.numerics.grids import Codes
from quantize.numerics.rtn import round_to_nearest
from quantize.numerics.sketch import PROJECTIONS, sketch
from quantize.numerics.small_floats import FloatCodes, tensor_scale, to_e4m3, to_mxfp4, to_nvfp4
from quantize.progress import progress_bar
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch


class NativeCompressed(Engine):
    """Made by this program; opened by transformers through the library."""

    needs: ClassVar[tuple[tuple[str, str], ...]] = (("compressed-tensors", "compressed_tensors"),)
    extra: ClassVar[str] = "compressed-tensors"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed-tensors")


NATIVE_COMPRESSED = NativeCompressed()
#: weights rounded at a time: 2 MB of float32, with what is made of them, stay in a core's cache
ROWS_AT_ONCE = 1 << 19
UNMEASURED = Measured()


def write_compressed(
    checkpoint: Checkpoint,
    format: CtFormat,
    stage: Path,
    run: RunOptions,
    title: str,
    measured: Measured = UNMEASURED,
) -> tuple[int, Computed, dict[str, str]]:
    """The weights' files into ``stage``; (bytes of tensor data, what was computed, SHA-256 of files that were
    hashed meanwhile). ``measured``: of formats that store scales from calibration. Errors: StepFailed where
    a weight is not finite."""
    computed = Computed()
    quantized = [Entry(*each) for linear in format.linears for each in format.matrix_entries(linear)]
    kept = [
        Entry(name, info.dtype, info.shape)
        for name, info in checkpoint.tensors.items()
        if name not in format.by_source
    ]
    scales = [Entry(*each) for each in format.kept_entries]
    entries = sorted([*quantized, *kept, *scales], key=lambda entry: entry.name)
    threads, makers = run.resolved_threads, _row_rounders(checkpoint, format, run)
    with (
        PlacedFolder(stage, entries, hashing=threads > 1) as folder,
        ThreadPoolExecutor(threads, thread_name_prefix="round") as pool,
        one_thread_each(run) if makers is None else nullcontext(),
        progress_bar(title, len(format.by_source) + len(kept), "tensors", run.progress) as advance,
    ):
        whole = dict(_tensor_scales(checkpoint, format)) if format.scheme.startswith("nvfp4") else {}

        def rounded(source: str) -> None:
            linears = format.by_source[source]
            if makers is not None:
                computed.keep(source, *put_rows(linears[0], makers(source)))
                return
            if len(linears) == 1 and linears[0].in_source == Place():
                computed.keep(source, *put(linears[0], partial(_rows, checkpoint, source), None))
                return
            known: list[tuple[np.ndarray, np.ndarray]] = []
            for array, inside in pieces(checkpoint, source, linears):
                values = np.empty(array.shape, np.float32)
                for linear in inside:
                    made = np.empty((linear.outputs, linear.inputs), np.float32)
                    put(linear, linear.take(array).__getitem__, made)
                    linear.give(values, made)
                known.append((sketch(array), sketch(values)))
            computed.keep(source, *map(np.concatenate, zip(*known, strict=True)))

        def put(
            linear: Linear, read: Callable[[slice], np.ndarray], made: np.ndarray | None
        ) -> tuple[np.ndarray, np.ndarray]:
            """Round one matrix, of which ``read`` gives rows, into its place, and into ``made``; without that
            the sketches of both are of use."""
            first = whole.get(_module(linear), 1.0)
            took, sketched = (np.empty((linear.outputs, PROJECTIONS)) for _ in range(2))
            ends: dict[str, int] = {}
            for rows in _parts(linear, format):
                weight = read(rows)
                codes = _round(checkpoint, format, linear, weight, first, run)
                for part, tensor in format.packed_rows(codes).items():
                    name = f"{linear.name}.{part}"
                    ends[name] = folder.put_part(name, tensor, ends.get(name, 0))
                found = codes.values().cpu().numpy()
                if made is None:
                    took[rows], sketched[rows] = sketch(weight), sketch(found)
                else:
                    made[rows] = found
            for part, tensor in format.packed_once(linear, first).items():
                folder.put(f"{linear.name}.{part}", tensor)
            if format.measured:
                folder.put(f"{linear.name}.{INPUTS}", np.array([measured.inputs[linear.name]], np.float32))
            return took, sketched

        def put_rows(linear: Linear, maker: RowRounder) -> tuple[np.ndarray, np.ndarray]:
            """``put`` by the compiled kernel, from the bits of the source's file."""
            took, sketched = (np.empty((linear.outputs, PROJECTIONS)) for _ in range(2))
            ends: dict[str, int] = {}
            raw = checkpoint.read(linear.source)
            for rows in _parts(linear, format):
                made = maker(raw[rows])
                if not made.fits:  # which says what is wrong
                    weight = _rows(checkpoint, linear.source, rows)
                    _round(checkpoint, format, linear, weight, 1.0, run)
                for part, tensor in format.rounded_rows(made).items():
                    name = f"{linear.name}.{part}"
                    ends[name] = folder.put_part(name, tensor, ends.get(name, 0))
                took[rows], sketched[rows] = made.took, made.made
            for part, tensor in format.packed_once(linear, 1.0).items():
                folder.put(f"{linear.name}.{part}", tensor)
            return took, sketched

        def copied(name: str) -> None:
            folder.put(name, checkpoint.read(name))

        for entry in scales:
            folder.put(entry.name, format.raw_scale(measured.kept[entry.name]))
        # in the order of the files, which are hashed meanwhile
        source_of = {entry.name: entry.name for entry in kept}
        for source, linears in format.by_source.items():
            source_of |= {name: source for each in linears for name, _, _ in format.matrix_entries(each)}
        sources = dict.fromkeys(source_of[name] for name in folder.names if name in source_of)
        work = [(rounded if name in format.by_source else copied, name) for name in sources]
        for done in few_at_a_time(pool, threads, work):
            done.result()
            advance(1)
    return folder.total_bytes, computed, folder.sha256


def few_at_a_time(
    pool: ThreadPoolExecutor, threads: int, work: Sequence[tuple[Callable[[str], None], str]]
) -> "Iterator[Future[None]]":
    """Results as they come; no more are begun than there are threads, so that an error ends it soon."""
    waiting = iter(work)
    running: set[Future[None]] = set()
    while True:
        while len(running) < threads and (following := next(waiting, None)) is not None:
            running.add(pool.submit(following[0], following[1]))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from done


def _parts(linear: Linear, format: CtFormat) -> Iterator[slice]:
    """Its outputs, as many at a time as a processor's cache holds: whole blocks, and words of zero points."""
    step = max(BLOCK, ROWS_AT_ONCE // linear.inputs // BLOCK * BLOCK)
    for start in range(0, linear.outputs, step):
        yield slice(start, min(start + step, linear.outputs))


def _row_rounders(
    checkpoint: Checkpoint, format: CtFormat, run: RunOptions
) -> Callable[[str], RowRounder] | None:
    """The compiled kernel for each of the source's tensors; None where it is not built, does not make the
    scheme, or where a tensor of the source is not one matrix in a type that it reads. Then torch rounds."""
    library, how = load(), format.how
    if isinstance(library, str) or not library.rounds_rows:
        return None
    if how.block or how.layout.startswith(("nvfp4", "mxfp4")):
        return None
    whole = all(
        len(linears) == 1 and linears[0].in_source == Place() and checkpoint.tensors[source].dtype in TYPES
        for source, linears in format.by_source.items()
    )
    if not whole or run.resolved_device != "cpu":
        return None

    @cache
    def made(dtype: str, columns: int) -> RowRounder:
        grid = format.grid if how.kind == "int" else None
        # stored as code - 128 where bytes are not packed
        flip = 0 if how.packed or grid is None else 0x80
        return RowRounder(library, dtype, columns, format.scale_type, grid, flip)

    return lambda source: made(checkpoint.tensors[source].dtype, format.by_source[source][0].inputs)


def _rows(checkpoint: Checkpoint, source: str, rows: slice) -> np.ndarray:
    """float32. Errors: StepFailed where one is not finite."""
    values = to_float32(checkpoint.read(source)[rows], checkpoint.tensors[source].dtype)
    if not np.isfinite(values.max(initial=0)) or not np.isfinite(values.min(initial=0)):
        checkpoint.read_float32(source)  # which says where
    return values


def _round(
    checkpoint: Checkpoint, format: CtFormat, linear: Linear, rows: np.ndarray, whole: float, run: RunOptions
) -> Codes | FloatCodes:
    """``rows`` of the matrix. Errors: StepFailed, naming the matrix."""
    import torch

    weight = torch.from_numpy(rows).to(run.resolved_device)
    how = format.how
    try:
        if how.kind == "int":
            return round_to_nearest(weight, format.grid, search=grid_search())
        if how.layout.startswith("nvfp4"):
            return to_nvfp4(weight, whole)
        if how.layout.startswith("mxfp4"):
            return to_mxfp4(weight)
        block = (BLOCK, BLOCK) if how.block else (1, linear.inputs)
        return to_e4m3(weight, block, _torch_type(format.scale_type))
    except QuantwrightError as error:
        raise StepFailed(f"{checkpoint.source}: {linear.name}: {error}") from None


def _torch_type(name: str) -> "torch.dtype":
    import torch

    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[name]


def _module(linear: Linear) -> str:
    """What holds the layers that loaders join: queries, keys and values, or gate and up."""
    return linear.name.rpartition(".")[0]


def _tensor_scales(checkpoint: Checkpoint, format: CtFormat) -> Iterator[tuple[str, float]]:
    """By module. One for all layers of it: loaders take the largest of those that they join, and then the
    others' weights would be wrong."""
    largest: dict[str, float] = {}
    for source, linears in format.by_source.items():
        for array, inside in pieces(checkpoint, source, linears):
            for linear in inside:
                view = linear.in_source.view(array)
                size = max(float(view.max(initial=0)), -float(view.min(initial=0)))
                largest[_module(linear)] = max(largest.get(_module(linear), 0.0), size)
    for name, size in largest.items():
        yield name, tensor_scale(size)


class one_thread_each:
    """torch's own threads would be as many again for each of ours."""

    def __init__(self, run: RunOptions):
        self._before = 0
        self._alone = run.resolved_device == "cpu" and (os.cpu_count() or 1) > 1

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_num_threads()
        if self._alone:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._before)
