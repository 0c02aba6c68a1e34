"""llama.cpp's block types, packed by kernels of our own or by ggml's: the checkpoint is read once, tensor by
tensor, so that the tensors are those that llama-quantize would have written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.reader import KeepsBlocks
from quantize.engines.base import Conversion, Engine
from quantize.gguf.container.chunks import NotFinite
from quantize.gguf.container.writer import File, Planned, Written, write_together
from quantize.gguf.families.base import Mapped
from quantize.gguf.mixture import lossless_type
from quantize.kernels import llamacpp
from quantize.kernels.block_types import SAME_BITS, TENSOR_TYPES, UNQUANTIZED, Type
from quantize.kernels.chosen import made_by
from quantize.numerics.mxfp4 import BLOCK, NAN, ggml_blocks
from quantize.progress import progress_bar
from quantize.recipe import RunOptions


class Ggml(Engine):
    distribution: ClassVar[str] = "llama-cpp-python"
    needs: ClassVar[tuple[tuple[str, str], ...]] = (("llama-cpp-python", "llama_cpp"), ("gguf", "gguf"))
    extra: ClassVar[str] = "llamacpp"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python")
    on_device: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return f"llama.cpp {llamacpp.revision()} (ggml block quantizers)"


GGML = Ggml()


@dataclass(frozen=True)
class Contents:
    """All of the file but the data of its tensors, which are read when they are written."""

    name: str
    kvs: dict[str, Any]
    tensors: list[Planned]
    notes: list[Note]


def planned(
    checkpoint: Checkpoint,
    mapped: Mapped,
    kind: Type,
    via: str,
    importance: np.ndarray | None,
) -> Planned:
    """One tensor of the file; ``via``: the type that its values are rounded to first, or ``auto``."""
    detour = None
    if via in ("f16", "bf16"):
        through = lossless_type(mapped.name, mapped.shape, TENSOR_TYPES[via])
        stored = {SAME_BITS.get(checkpoint.tensors[name].dtype) for name in mapped.sources}
        detour = None if through is Type.F32 or stored == {through} else through

    dtypes = {checkpoint.tensors[name].dtype for name in mapped.sources}
    raw = mapped.pure and len(dtypes) == 1 and dtypes <= set(SAME_BITS)

    def load() -> np.ndarray:
        read: Callable[[str], np.ndarray] = checkpoint.read if raw else checkpoint.read_float32
        built = np.asarray(mapped.build([np.asarray(read(name)) for name in mapped.sources]))
        assert built.shape == mapped.shape, f"{mapped.name}: built {built.shape}, planned {mapped.shape}"
        return built.reshape(-1, mapped.shape[-1])

    def diagnose() -> None:
        for name in mapped.sources:
            checkpoint.read_float32(name)

    return Planned(
        mapped.name,
        mapped.shape,
        kind,
        load,
        diagnose,
        via=detour,
        importance=importance,
        matrix=_matrix(checkpoint, mapped) if raw else None,
        blocks=_kept_blocks(checkpoint, mapped) if kind is Type.MXFP4 and detour is None else None,
    )


def _matrix(checkpoint: Checkpoint, mapped: Mapped) -> Callable[[int], np.ndarray] | None:
    """What reads one expert's matrix of the file's tensor, where it need not read the others."""
    build = mapped.of_entry
    if build is None:
        return None
    if len(mapped.sources) > 1:
        return lambda index: build.build([checkpoint.read(mapped.sources[index])])
    read = checkpoint.entries(mapped.sources[0])
    return None if read is None else lambda index: build.build([read(index)])


def _kept_blocks(checkpoint: Checkpoint, mapped: Mapped) -> Callable[[int, int], np.ndarray] | None:
    """The source's own MXFP4 blocks, where the file's tensor has some of the rows of one such tensor."""
    reader = checkpoint.reader
    if not isinstance(reader, KeepsBlocks) or len(mapped.sources) != 1:
        return None
    packed = reader.packed(mapped.sources[0])
    if packed is None or not mapped.pure or len(mapped.shape) != 3:
        return None
    experts, count, groups = packed[1].shape
    # which rows, by what becomes of their numbers
    rows = mapped.build([np.arange(count)[None, None, :]]).reshape(-1)
    if mapped.shape != (experts, rows.size, groups * BLOCK):
        return None
    del packed

    def blocks(first: int, last: int) -> np.ndarray:
        number = np.arange(first, last)
        place = number // rows.size, rows[number % rows.size]
        both = reader.packed(mapped.sources[0])  # mapped anew: what was looked at does not stay in memory
        assert both is not None
        codes, scales = both
        if (scales[place] == NAN).any():
            raise NotFinite
        return ggml_blocks(codes[place], scales[place])

    return blocks


def write_files(
    works: Sequence[tuple[Contents, Sequence[Mapped], Path, int | None]], run: RunOptions, title: str
) -> list[Conversion | Exception]:
    """Write a file for each of ``works`` from one reading of the tensors: its contents, the tensors that
    these are made from, the folder that it goes to, and the size at which it is split. What was wrong with
    one stands in its place."""
    files = [
        File(stage / contents.name, contents.kvs, contents.tensors, split_max_bytes)
        for contents, _, stage, split_max_bytes in works
    ]
    weights = sum(int(np.prod(tensor.shape)) for tensor in files[0].tensors)
    with progress_bar(title, weights, "weights", run.progress) as progress:
        results = write_together(files, threads=run.resolved_threads, progress=progress)
    return [
        result if isinstance(result, Exception) else _conversion(contents, sources, result)
        for (contents, sources, _, _), result in zip(works, results, strict=True)
    ]


def _conversion(contents: Contents, sources: Sequence[Mapped], written: Written) -> Conversion:
    counts: dict[str, int] = {}
    for tensor in contents.tensors:
        counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + 1
    return Conversion(
        weight_bytes=written.data_bytes,
        engine=GGML.label,
        libraries=GGML.libraries,
        notes=contents.notes,
        checksums=written.checksums,
        sha256={path.name: digest for path, digest in written.files.items()},
        details={
            "llama.cpp": llamacpp.describe(),
            "tensor_types": dict(sorted(counts.items())),
            "block_quantizers": made_by({t.kind for t in contents.tensors} - {*UNQUANTIZED}),
            "sources": {mapped.name: list(mapped.sources) for mapped in sources},
            **{key: value for key, (value, _) in contents.kvs.items() if key.startswith("quantize.imatrix.")},
        },
    )
