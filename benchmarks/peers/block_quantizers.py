"""Our compiled block quantizers beside llama.cpp's, in turn on the same rows, in one thread: weights in a
second of the processor's time, and how many blocks differ.

python -m benchmarks.peers.block_quantizers [--types q4_k,q6_k] [--weights 1e8] [--importance]
                                            [--model FOLDER]

Rows are of 4,096 columns: normal, heavy-tailed, with one outlier, bf16 and sparse ones in turn, or the
matrices of a checkpoint, repeated until there are enough. ``$QUANTWRIGHT_KERNELS`` chooses the
implementation.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from quantize.kernels import native
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.block_types import TENSOR_TYPES, Type, block_size, row_bytes
from quantize.kernels.ggml import GGML
from quantize.sources.opening import open_checkpoint

COLUMNS, ROWS = 4096, 64


def random_rows(seed: int) -> Iterator[np.ndarray]:
    """(64, 4096) float32, without end."""
    random = np.random.default_rng(seed)
    while True:
        normal = random.standard_normal((ROWS, COLUMNS), np.float32)
        yield 0.02 * normal
        yield (0.02 * random.standard_t(2, (ROWS, COLUMNS))).astype(np.float32)
        outlier = 0.001 * normal
        outlier[np.arange(ROWS), random.integers(0, COLUMNS, ROWS)] = 100
        yield outlier
        yield (normal.view(np.uint32) & 0xFFFF0000).view(np.float32)
        yield normal * (random.random((ROWS, COLUMNS)) < 0.05)


def stored_rows(folder: Path) -> Iterator[np.ndarray]:
    """The matrices of a checkpoint, cut into rows of 256, without end."""
    checkpoint = open_checkpoint(folder)
    for name in cycle(name for name, info in checkpoint.tensors.items() if len(info.shape) == 2):
        values = checkpoint.read_float32(name).reshape(-1)
        rows = values[: len(values) // 256 * 256].reshape(-1, 256)
        for first in range(0, len(rows), 1024):
            yield np.ascontiguousarray(rows[first : first + 1024])


def timed(
    quantizer: BlockQuantizer, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None
) -> float:
    begun = time.thread_time()
    quantizer.quantize(kind, rows, out, importance)
    return rows.size / (time.thread_time() - begun) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--types", default=",".join(kind.name.lower() for kind in sorted(native.Native.kinds))
    )
    parser.add_argument("--weights", type=float, default=1e7)
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    library = native.load()
    if isinstance(library, str):
        sys.exit(f"compiled kernels: {library}")
    ours = native.Native(library)
    print(f"ours: {ours.version}; llama.cpp {GGML.version}; millions of weights a second, median")
    for name in options.types.split(","):
        kind = TENSOR_TYPES[name]
        GGML.prepare(kind)
        source = stored_rows(options.model) if options.model else random_rows(options.seed)
        random = np.random.default_rng(options.seed)
        done = blocks = differing = 0
        theirs_rate: list[float] = []
        ours_rate: list[float] = []
        while done < options.weights:
            rows = next(source)
            importance = None
            if options.importance:
                importance = random.lognormal(0, 2, rows.shape[1]).astype(np.float32)
            made, expected = np.empty((2, len(rows), row_bytes(kind, rows.shape[1])), np.uint8)
            theirs_rate.append(timed(GGML, kind, rows, expected, importance))
            ours_rate.append(timed(ours, kind, rows, made, importance))
            count = rows.size // block_size(kind)
            differing += int((made != expected).reshape(count, -1).any(1).sum())
            blocks, done = blocks + count, done + rows.size
        theirs, mine = statistics.median(theirs_rate), statistics.median(ours_rate)
        print(
            f"{name:7} llama.cpp {theirs:8.1f}  ours {mine:8.1f}  x {mine / theirs:5.1f}   "
            f"{differing:,} of {blocks:,} blocks ({done:,} weights) differ",
            flush=True,
        )


if __name__ == "__main__":
    main()
