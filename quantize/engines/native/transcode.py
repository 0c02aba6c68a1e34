"""Codes of a packed source written in another format: nothing is rounded, no model is run. Tensors are read,
packed and written several at a time, each straight to its place in the artifact."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.placed import PlacedFolder
from quantize.checkpoint.tensors import Entry
from quantize.engines.base import Computed
from quantize.engines.native.compressed_tensors import few_at_a_time, one_thread_each
from quantize.formats.codes import HoldsCodes
from quantize.formats.packed import PackedFormat
from quantize.numerics.grids import Codes
from quantize.progress import progress_bar
from quantize.recipe import RunOptions


def write_transcoded(
    checkpoint: Checkpoint, format: PackedFormat, stage: Path, run: RunOptions, title: str
) -> tuple[int, Computed]:
    """The weights' files into ``stage``; (bytes of tensor data, what was computed). Each of the format's
    matrices is a tensor that ``checkpoint``'s reader holds as codes of the same grid."""
    import torch

    held, computed = checkpoint.reader, Computed()
    assert isinstance(held, HoldsCodes)
    extras = format.extras(checkpoint)
    packed = [Entry(*each) for linear in format.linears for each in format.matrix_entries(linear)]
    kept = [
        Entry(name, info.dtype, info.shape)
        for name, info in checkpoint.tensors.items()
        if name not in format.by_source
    ]
    added = [Entry(name, "F16", array.shape) for name, array in extras.items()]
    threads = run.resolved_threads
    with (
        PlacedFolder(stage, sorted([*packed, *kept, *added], key=lambda entry: entry.name)) as folder,
        ThreadPoolExecutor(threads, thread_name_prefix="transcode") as pool,
        one_thread_each(run),
        progress_bar(title, len(format.by_source), "tensors", run.progress) as advance,
    ):

        def transcoded(source: str) -> None:
            (linear,) = format.by_source[source]
            scales, zeros = held.scales(source)
            codes = Codes(*(torch.from_numpy(part) for part in (held.codes(source), scales, zeros)))
            for name, tensor in format.pack(linear, codes).items():
                folder.put(name, tensor)
            values = np.empty(checkpoint.tensors[source].shape, np.float32)
            linear.give(values, codes.values().numpy())
            computed.took(source, checkpoint.read_float32(source))
            computed.add(source, values)

        def copied(name: str) -> None:
            folder.put(name, checkpoint.read(name))

        for done in few_at_a_time(pool, threads, [(transcoded, name) for name in format.by_source]):
            done.result()
            advance(1)
        for done in few_at_a_time(pool, threads, [(copied, entry.name) for entry in kept]):
            done.result()
        for name, array in extras.items():
            folder.put(name, array)
        return folder.total_bytes, computed
