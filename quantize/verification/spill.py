"""What a second reader read, kept on the disk: the logits are computed from it module by module."""

import math
from pathlib import Path

import numpy as np

from quantize.checkpoint.entries import Entries


class Spill:
    """float32 arrays as raw files, mapped when read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def add(self, name: str, values: np.ndarray | Entries) -> np.ndarray | Entries:
        """-> what to look at: ``Entries`` are read from here then, so that they are made once."""
        number = len(self._shapes)
        self._shapes[name] = (number, values.shape)
        path = self.folder / f"{number}.f32"
        if not isinstance(values, Entries):
            np.ascontiguousarray(values, dtype=np.float32).tofile(path)
            return values
        with open(path, "wb") as file:
            for entry in values:
                file.write(np.ascontiguousarray(entry, dtype=np.float32).data)
        shape = values.shape[1:]
        size = 4 * math.prod(shape)
        return Entries(values.shape, lambda index: np.memmap(path, np.float32, "r", index * size, shape))

    def read(self, name: str) -> np.ndarray:
        number, shape = self._shapes[name]
        if 0 in shape:
            return np.empty(shape, np.float32)
        mapped: np.ndarray = np.memmap(self.folder / f"{number}.f32", np.float32, "r", shape=shape or (1,))
        return mapped.reshape(shape)
