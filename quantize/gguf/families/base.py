"""What a family derives from a checkpoint's headers: the tensors of its GGUF, how each is built, and its
key-values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from quantize.artifact.artifact import Note
from quantize.gguf.families.operations import Operation


@dataclass(frozen=True)
class Mapped:
    """One GGUF tensor. Shapes are in numpy order (rows first)."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]  # HF tensors it is made from; none: a constant
    #: source arrays, in the order of ``sources`` -> array of ``shape``; float32, or any dtype where ``pure``
    build: Callable[[list[np.ndarray]], np.ndarray]
    #: float32 array of ``shape`` -> float32 source arrays in order; where a source is spread over several
    #: GGUF tensors, what this one does not hold is NaN (``restore`` joins them)
    restore: Callable[[np.ndarray], list[np.ndarray]]
    pure: bool  # build only moves or copies values: usable on raw bit patterns
    #: the source's column that each column of this tensor is; None: they are in the source's order
    columns: np.ndarray | None = None
    #: what makes one entry of the first axis of three, an expert's matrix, by itself: see
    #: ``Operation.of_entry``
    of_entry: Operation | None = None
    restored: Sequence[tuple[int, ...]] = ()  # shapes of what ``restore`` gives


@dataclass(frozen=True)
class FamilyPlan:
    architecture: str  # llama.cpp's name: llama, qwen2, gemma3, ...
    # hyperparameters as llama.cpp's converter writes them; arrays as (list, ARRAY)
    kvs: dict[str, tuple[Any, GGUFValueType]]
    tensors: list[Mapped]  # in the order in which llama.cpp's converter would write them
    notes: list[Note]
    left_out: frozenset[str] = frozenset()  # source tensors that it has no place for, as the notes say
    ahead: frozenset[str] = (
        frozenset()
    )  # tensors of layers that predict further tokens: no text's pass runs them
