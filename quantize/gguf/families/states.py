"""What happens to the tensors of recurrent layers (Mamba, gated delta net) and to fused ones of unequal
parts, each with its inverse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantize.errors import BadInput
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import Rule
from quantize.gguf.families.operations import Operation, Shape


@dataclass(frozen=True)
class NegativeExp(Operation):
    """The logarithm of a decay -> the factor itself, -exp(a)."""

    pure = False

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return -np.exp(arrays[0].astype(np.float32))

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [np.log(-array)]


@dataclass(frozen=True)
class Squeeze(Operation):
    """The second axis, of one, left out: kernels of depthwise convolutions (channels, 1, width)."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes[0]) < 3 or shapes[0][1] != 1:
            raise BadInput(f"(channels, 1, width) was expected, not {list(shapes[0])}")
        return (shapes[0][0], *shapes[0][2:])

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0][:, 0]

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array[:, None]]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return [(shape[0], 1, *shape[1:])]


@dataclass(frozen=True)
class Rows(Operation):
    """A vector as ``count`` rows; None: as many as it has values."""

    count: int | None = None

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        count = shapes[0][0] if self.count is None else self.count
        if len(shapes[0]) != 1 or shapes[0][0] % count:
            raise BadInput(f"a tensor of {list(shapes[0])} cannot be split into {count} rows")
        return (count, shapes[0][0] // count)

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0].reshape(self.shape([arrays[0].shape]))

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array.reshape(-1)]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return [(math.prod(shape),)]


@dataclass(frozen=True)
class TileHeads(Operation):
    """Value heads in groups, one for each key head -> the first of every group, then the second.

    Along ``axis``, from ``start`` on: (groups, each, width) -> (each, groups, width). llama.cpp repeats key
    heads as tiles where transformers repeats each.
    """

    groups: int
    each: int
    width: int = 1
    start: int = 0
    axis: int = 0

    def _moved(self, array: np.ndarray, first: int, second: int) -> np.ndarray:
        kept, moved = np.split(array, [self.start], axis=self.axis)
        front, back = moved.shape[: self.axis], moved.shape[self.axis + 1 :]
        heads = moved.reshape(*front, first, second, self.width, *back)
        heads = heads.swapaxes(self.axis, self.axis + 1).reshape(moved.shape)
        return np.concatenate([kept, heads], axis=self.axis)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        expected = self.start + self.groups * self.each * self.width
        if shapes[0][self.axis] != expected:
            raise BadInput(f"an axis of {shapes[0][self.axis]}, {expected} expected by its heads")
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self._moved(arrays[0], self.groups, self.each)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [self._moved(array, self.each, self.groups)]

    def columns(self) -> np.ndarray | None:
        if self.axis == 0:
            return None
        order = np.arange(self.start + self.groups * self.each * self.width)
        return self._moved(order[None], self.groups, self.each)[0]


class Chain(Operation):
    """One after another, each of one source."""

    def __init__(self, *operations: Operation):
        self.operations = operations
        self.pure = all(operation.pure for operation in operations)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        for operation in self.operations:
            shapes = [operation.shape(shapes)]
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        for operation in self.operations:
            arrays = [operation.build(arrays)]
        return arrays[0]

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        between = [list(shapes)]
        for operation in self.operations:
            between.append([operation.shape(between[-1])])
        for operation, before in zip(reversed(self.operations), reversed(between[:-1]), strict=True):
            array = operation.restore(array, before)[0]
        return [array]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        for operation in reversed(self.operations):
            shape = operation.source_shapes(shape, 1)[0]
        return [shape]


@dataclass(frozen=True)
class Joined(Operation):
    """Pieces of one source, one behind the other along the first axis."""

    pieces: tuple[Operation, ...]

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        each = [piece.shape(shapes) for piece in self.pieces]
        return (sum(shape[0] for shape in each), *each[0][1:])

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([piece.build(arrays) for piece in self.pieces])

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        ends = np.cumsum([piece.shape(shapes)[0] for piece in self.pieces])
        whole = np.full(shapes[0], np.nan, np.float32)
        for piece, part in zip(self.pieces, np.split(array, ends[:-1]), strict=True):
            one = piece.restore(part, shapes)[0]
            np.copyto(whole, one, where=~np.isnan(one))
        return [whole]

    def source_shapes(self, shape: Shape, count: int) -> list[Shape]:
        return self.pieces[0].source_shapes(shape, count)


@dataclass(frozen=True)
class Scale(Operation):
    """Times a factor, or one for each row: (factor, number of rows) one behind the other."""

    factors: tuple[tuple[float, int | None], ...]
    pure = False

    def _column(self, array: np.ndarray) -> np.ndarray:
        if self.factors[0][1] is None:
            return np.float32(self.factors[0][0])  # type: ignore[return-value]
        counts = [count or 0 for _, count in self.factors]
        each = np.repeat(np.array([factor for factor, _ in self.factors], np.float32), counts)
        return np.asarray(each.reshape(-1, *[1] * (array.ndim - 1)))

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        counts = [count for _, count in self.factors if count is not None]
        if counts and sum(counts) != shapes[0][0]:
            raise BadInput(f"{shapes[0][0]} rows, {sum(counts)} expected")
        return shapes[0]

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0] * self._column(arrays[0])

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [array / self._column(array)]


def always(operation: Operation) -> Callable[[Hyperparameters], Operation]:
    return lambda h: operation


NEGATIVE, KERNEL = always(NegativeExp()), always(Squeeze())
COLUMN, NEGATIVE_COLUMN = always(Rows()), always(Chain(NegativeExp(), Rows()))


def groups(h: Hyperparameters) -> int:
    return int(h.find("n_groups", "mamba_n_groups") or 1)


def by_group(h: Hyperparameters) -> Operation:
    return Rows(groups(h))


def mamba1(source: str) -> tuple[Rule, ...]:
    """``source``: the mixer's name with its dot."""
    return (
        Rule("blk.{i}.ssm_in", source + "in_proj"),
        Rule("blk.{i}.ssm_conv1d", source + "conv1d", KERNEL),
        Rule("blk.{i}.ssm_conv1d", source + "conv1d", suffixes=(".bias",)),
        Rule("blk.{i}.ssm_x", source + "x_proj"),
        Rule("blk.{i}.ssm_dt", source + "dt_proj", suffixes=(".weight", ".bias")),
        Rule("blk.{i}.ssm_a", source + "A_log", NEGATIVE, suffixes=("",), ending=""),
        Rule("blk.{i}.ssm_d", source + "D", suffixes=("",), ending=""),
        Rule("blk.{i}.ssm_out", source + "out_proj"),
    )


def mamba2(source: str, norm: bool = True) -> tuple[Rule, ...]:
    """``source``: the mixer's name with its dot."""
    normed = (Rule("blk.{i}.ssm_norm", source + "norm", by_group),) if norm else ()
    return (
        Rule("blk.{i}.ssm_in", source + "in_proj"),
        Rule("blk.{i}.ssm_conv1d", source + "conv1d", KERNEL),
        Rule("blk.{i}.ssm_conv1d", source + "conv1d", suffixes=(), optional=(".bias",)),
        Rule("blk.{i}.ssm_dt", source + "dt_bias", suffixes=("",), ending=".bias"),
        Rule("blk.{i}.ssm_a", source + "A_log", NEGATIVE_COLUMN, suffixes=("",), ending=""),
        Rule("blk.{i}.ssm_d", source + "D", COLUMN, suffixes=("",), ending=""),
        *normed,
        Rule("blk.{i}.ssm_out", source + "out_proj"),
    )
