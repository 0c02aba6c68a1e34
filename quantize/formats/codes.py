"""What lies packed in a checkpoint's files, as codes: another format of the same grid takes them over as they
are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class HeldGrid:
    """Of a matrix (outputs, inputs), by headers: ``groups`` of inputs to each output. ``scale_type``: what
    its scales are stored in, by safetensors' name."""

    outputs: int
    inputs: int
    bits: int
    groups: int
    scale_type: str

    @property
    def group_size(self) -> int:
        return self.inputs // self.groups


@runtime_checkable
class HoldsCodes(Protocol):
    """A reader of tensors that lie in files as codes 0 .. 2**bits - 1, meaning scale * (code - zero)."""

    #: how the packing is called
    layout: str
    #: by the name of the tensor that ``read`` dequantizes; empty where some of them are packed otherwise
    grids: Mapping[str, HeldGrid]

    def scales(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(o, g) float32, exactly the stored ones, and (o, g) int32 zero points."""
        ...

    def codes(self, name: str) -> np.ndarray:
        """(o, i) uint8."""
        ...

    def reordered(self, name: str) -> bool:
        """Whether groups are not of neighbouring inputs, in order."""
        ...
