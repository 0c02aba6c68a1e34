"""Where the data of a checkpoint's tensors come from: files that hold them as they are, or something that
they are made of when they are read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo, entry_of, read_raw


class TensorReader(Protocol):
    """Gives tensors one at a time, any number of times, in any order."""

    def read(self, info: TensorInfo) -> np.ndarray:
        """The data, BF16 as uint16 bit patterns. Nobody writes to it: it may be given again."""
        ...

    def files(self, tensors: Iterable[TensorInfo]) -> Iterable[tuple[str, Path]]:
        """The files that ``tensors`` are read from, by what each is called in a digest."""
        ...


#: index -> that entry of a tensor's first axis, as ``TensorReader.read`` gives it
ReadEntry = Callable[[int], np.ndarray]


@runtime_checkable
class ReadsEntries(Protocol):
    """A reader that need not make all of a tensor for a part of it."""

    def entries(self, info: TensorInfo) -> ReadEntry | None:
        """Of a tensor with axes; None where one entry (an expert's matrix) costs as much as all."""
        ...


@runtime_checkable
class KeepsBlocks(Protocol):
    """A reader of tensors that lie in files in blocks of four bits."""

    def packed(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """MXFP4 codes (experts, rows, groups, 16), two a byte, and scales (experts, rows, groups) uint8, of
        what ``read`` gives as (experts, groups * 32, rows); None for any other tensor."""
        ...


class InFiles:
    """Of tensors that lie in safetensors files."""

    def read(self, info: TensorInfo) -> np.ndarray:
        assert isinstance(info, StoredTensor), info
        return read_raw(info)

    def entries(self, info: TensorInfo) -> ReadEntry:
        assert isinstance(info, StoredTensor), info
        stored = info
        return lambda index: read_raw(entry_of(stored, index))

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return [(str(info.file), info.file) for info in tensors if isinstance(info, StoredTensor)]


IN_FILES = InFiles()


@dataclass(frozen=True)
class Weights:
    """What ``Checkpoint`` has of weights; ``left_alone``, ``usual`` and ``quantized`` as it says."""

    tensors: Mapping[str, TensorInfo]
    reader: TensorReader = IN_FILES
    left_alone: tuple[str, ...] = ()
    usual: bool = True
    quantized: str = ""
