"""A tensor of all of a layer's experts that is read one expert's matrix at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entries:
    """``entry``: number along the first axis of ``shape`` -> that part of the tensor, float32, made anew each
    time."""

    shape: tuple[int, ...]
    entry: Callable[[int], np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.entry(index) for index in range(self.shape[0]))

    def whole(self) -> np.ndarray:
        out = np.empty(self.shape, np.float32)
        for index, entry in enumerate(self):
            out[index] = entry
        return out
