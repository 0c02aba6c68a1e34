"""What happens to a tensor on its way from a checkpoint to GGUF, each operation with its inverse.

An operation is *pure* if it only moves or copies values, so that it works on raw bit patterns of any dtype
too. One that keeps a part of its source only (``Rows``) restores the full shape with NaN where it holds
nothing; ``families.restore`` joins the parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantize.errors import BadInput

Shape = tuple[int, ...]


class Operation:
    """One GGUF tensor from one or more source tensors. The base class copies its only source."""

    pure = True

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of the result. Errors: BadInput where the sources' shapes do not fit the operation."""
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0]

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array]

    def columns(self) -> np.ndarray | None:
        """The input that each column of the result is multiplied with, by its number in the source; None
        where they stay in order."""
        return None

    def of_entry(self) -> "Operation | None":
        """What makes one entry of the result's first axis (an expert's matrix) from the same entry of the
        only source's, or from the source of that number where there is one for each; None where that takes
        more."""
        return self if type(self) is Operation else None

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        """Shapes of the ``count`` sources of a result of ``shape``. Errors: NotImplementedError where it does
        not tell."""
        if count != 1:
            raise NotImplementedError
        return [shape]


COPY = Operation()


@dataclass(frozen=True)
class RopePermutation(Operation):
    """Rows of q and k: transformers rotates (i, i + d/2), llama.cpp's ``llama`` rotates (2i, 2i + 1) within
    each of ``heads``."""

    heads: int

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0][0] % (2 * self.heads):
            raise BadInput(f"{shapes[0][0]} rows cannot be split among {self.heads} heads of even size")
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        a = arrays[0]
        return a.reshape(self.heads, 2, -1, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array.reshape(self.heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)]


@dataclass(frozen=True)
class Add(Operation):
    """Gemma's norms: transformers multiplies by 1 + weight, llama.cpp by the stored weight."""

    amount: float
    pure = False

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0] + np.float32(self.amount)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array - np.float32(self.amount)]


@dataclass(frozen=True)
class Transpose(Operation):
    """Weights stored input-first (GPT-2's Conv1D)."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0][::-1]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(arrays[0].T)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [np.ascontiguousarray(array.T)]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return [shape[::-1]]


@dataclass(frozen=True)
class Stack(Operation):
    """Experts (or per-head norms) in separate tensors -> one tensor with them along a new first axis."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(set(shapes)) != 1:
            raise BadInput(f"tensors of different shapes cannot be stacked: {sorted(set(shapes))}")
        return (len(shapes), *shapes[0])

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return np.stack(arrays)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return list(array)

    def of_entry(self) -> Operation | None:
        return COPY

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        if shape[0] != count:
            raise BadInput(f"{shape[0]} along the first axis, {count} expected")
        return [shape[1:]] * count


@dataclass(frozen=True)
class Part(Operation):
    """A piece of a fused source: the source seen as ``(*view, rest...)``, ``start:stop`` along ``axis`` of
    that, then ``then``.

    ``view`` splits the source's first axis (``lead`` axes stay before it); the piece is flattened back to the
    source's number of axes unless ``keep``.
    """

    view: Shape
    axis: int
    start: int
    stop: int
    then: Operation = COPY
    lead: int = 0
    keep: bool = False

    def _viewed(self, shape: Shape) -> Shape:
        if math.prod(self.view) != shape[self.lead]:
            raise BadInput(f"an axis of {shape[self.lead]} cannot be split as {self.view}")
        return (*shape[: self.lead], *self.view, *shape[self.lead + 1 :])

    def _piece(self, shape: Shape) -> Shape:
        viewed = list(self._viewed(shape))
        viewed[self.lead + self.axis] = self.stop - self.start
        if self.keep:
            return tuple(viewed)
        split = self.lead + len(self.view)
        return (*viewed[: self.lead], math.prod(viewed[self.lead : split]), *viewed[split:])

    def of_entry(self) -> Operation | None:
        then = self.then.of_entry()
        return None if then is None or not self.lead else replace(self, then=then, lead=self.lead - 1)

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        piece = self.then.source_shapes(shape, count)[0]
        after = self.lead + (len(self.view) if self.keep else 1)
        return [(*piece[: self.lead], math.prod(self.view), *piece[after:])]

    def _index(self) -> tuple[slice, ...]:
        return (slice(None),) * (self.lead + self.axis) + (slice(self.start, self.stop),)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.then.shape([self._piece(shapes[0])])

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        shape = arrays[0].shape
        return self.then.build(
            [arrays[0].reshape(self._viewed(shape))[self._index()].reshape(self._piece(shape))]
        )

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        shape = shapes[0]
        piece = self.then.restore(array, [self._piece(shape)])[0]
        whole = np.full(self._viewed(shape), np.nan, np.float32)
        target = whole[self._index()]
        target[...] = piece.reshape(target.shape)
        return [whole.reshape(shape)]


@dataclass(frozen=True)
class Flat(Operation):
    """A first axis of one left out."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0][0] != 1:
            raise BadInput(f"{shapes[0][0]} along the first axis, 1 expected")
        return shapes[0][1:]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0][0]

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array[None]]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return [(1, *shape)]


@dataclass(frozen=True)
class SwapAxes(Operation):
    """The last two axes exchanged. What is built is a view: whoever takes rows of it copies no more than
    these."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        *front, a, b = shapes[0]
        return (*front, b, a)

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0].swapaxes(-1, -2)

    def of_entry(self) -> Operation | None:
        return self  # of three axes

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [np.ascontiguousarray(array.swapaxes(-1, -2))]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return [self.shape([shape])]


@dataclass(frozen=True)
class UngroupQkv(Operation):
    """Fused q, k, v interleaved by group (each: ``queries`` query heads, one key, one value head) -> all q,
    all k, all v."""

    groups: int
    queries: int = 1

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0][0] % (self.groups * (self.queries + 2)):
            raise BadInput(f"{shapes[0][0]} rows of fused q, k, v cannot be split into {self.groups} groups")
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        a = arrays[0]
        grouped = a.reshape(self.groups, self.queries + 2, -1, *a.shape[1:])
        parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        return np.concatenate([part.reshape(-1, *a.shape[1:]) for part in parts])

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        head = array.shape[0] // (self.groups * (self.queries + 2))
        rest = array.shape[1:]
        q, k, v = np.split(
            array, [self.groups * self.queries * head, self.groups * (self.queries + 1) * head]
        )
        grouped = [part.reshape(self.groups, -1, head, *rest) for part in (q, k, v)]
        return [np.concatenate(grouped, axis=1).reshape(array.shape)]


@dataclass(frozen=True)
class Normalise(Operation):
    """Rows scaled to length one (Baichuan 2's head, which its own code normalises at every step). What comes
    back are those rows: the model they make is the same."""

    pure = False

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        length = np.sqrt(np.square(arrays[0], dtype=np.float32).sum(axis=1, keepdims=True))
        return np.asarray(arrays[0] / np.maximum(length, np.float32(1e-12)), np.float32)
