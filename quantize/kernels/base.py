"""What packs weights into blocks."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from quantize.errors import StepFailed
from quantize.kernels.block_types import Type


class BlockQuantizer(ABC):
    """Turns rows of float32 into the bytes of a block type. Safe in several threads at once, after
    ``prepare``."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Type]]  # that it can make

    @property
    @abstractmethod
    def version(self) -> str:
        """Goes with every artifact: another version may round otherwise."""

    @abstractmethod
    def prepare(self, kind: Type) -> None:
        """Build the tables that ``kind`` needs; once, before threads use it."""

    @abstractmethod
    def quantize(
        self, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None
    ) -> None:
        """Quantize ``rows`` (r, c) float32 into ``out`` (r, bytes of one row) uint8.

        ``importance``: float32 (c,), one weight per column. Both arrays C-contiguous. Rows are independent of
        one another.
        Errors: StepFailed where the result is not valid (a value that ``kind`` cannot hold).
        """


def too_large(kind: Type, rows: np.ndarray) -> StepFailed:
    """The error for values that blocks of ``kind`` cannot hold."""
    return StepFailed(
        f"values up to {float(np.abs(rows).max()):.4g} do not fit into {kind.name}; "
        f"use a type with more range"
    )
