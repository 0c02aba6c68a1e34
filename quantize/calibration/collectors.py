"""What a pass over calibration windows gathers of the activations that enter each weight."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Gathered = TypeVar("Gathered")


class Collector(ABC, Generic[Gathered]):
    """``products.collecting`` calls ``add`` at every product, in the order of the model."""

    @abstractmethod
    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        """``inputs`` (..., columns) are about to be multiplied with the parameter ``name``; of one that holds
        several matrices (experts), with number ``matrix``. Valid until the call returns."""

    @abstractmethod
    def result(self) -> dict[str, dict[int, Gathered]]:
        """Parameter -> matrix -> what was gathered; those that nothing entered are left out."""


@dataclass(frozen=True)
class Moment:
    """``sums`` (columns,) float64: of the squares of each column's inputs, over ``count`` rows."""

    sums: np.ndarray
    count: int


#: parameter -> number of the matrix within it -> sums
Moments = dict[str, dict[int, Moment]]


class SecondMoments(Collector[Moment]):
    """Sums of squares, column by column: the diagonal of what a Hessian would hold. ``before``: of other
    rows, to which these are added; left as it is."""

    #: that are squared at once
    ROWS = 128

    def __init__(self, before: Moments | None = None) -> None:
        self._squares: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._before = before or {}
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def _of(self, inputs: "torch.Tensor") -> "torch.Tensor":
        """Computed once for matrices that take the same inputs one after the other."""
        import torch

        if self._last is None or self._last[0] is not inputs or self._last[1] != inputs._version:
            rows = inputs.reshape(-1, inputs.shape[-1])
            # float32 sums over few rows, of what a cache holds, are as exact as the factors (5e-8)
            sums = torch.stack([part.float().square().sum(0) for part in rows.split(self.ROWS)])
            self._last = inputs, inputs._version, sums.double().sum(0)
        return self._last[2]

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        squares = self._of(inputs)
        if name not in self._squares:
            known = self._before.get(name, {})
            self._squares[name] = {m: torch.from_numpy(each.sums).to(squares) for m, each in known.items()}
            self._counts[name] = {m: each.count for m, each in known.items()}
        mine, counts = self._squares.setdefault(name, {}), self._counts.setdefault(name, {})
        mine[matrix] = mine[matrix] + squares if matrix in mine else squares
        counts[matrix] = counts.get(matrix, 0) + inputs.numel() // inputs.shape[-1]

    def result(self) -> Moments:
        mine = {
            name: {
                matrix: Moment(sums.cpu().numpy(), self._counts[name][matrix])
                for matrix, sums in squares.items()
            }
            for name, squares in self._squares.items()
        }
        return self._before | mine


@dataclass(frozen=True)
class Hessian:
    """``sums`` (columns, columns) float32: X^T X of ``count`` rows X."""

    sums: "torch.Tensor"
    count: int


class Hessians(Collector[Hessian]):
    """Sums of products of inputs, float32, on the device of the inputs. ``only``: matrices of which
    parameters, where not all are wanted at once.

    A row adds to a float32 sum as it does in a product of float32 matrices: a relative error of 1e-6 of the
    diagonal was seen over 32,768 rows.
    """

    #: columns of a block: only blocks on and above the diagonal are computed
    BLOCK = 256

    def __init__(self, only: dict[str, set[int]] | None = None) -> None:
        self._only = only
        self._sums: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        if self._only is not None and matrix not in self._only.get(name, ()):
            return
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        columns = rows.shape[1]
        mine, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
        if matrix not in mine:
            mine[matrix] = torch.zeros((columns, columns), dtype=torch.float32, device=rows.device)
        sums, size = mine[matrix], self.BLOCK if rows.device.type == "cpu" else columns
        for first in range(0, columns, size):
            part = rows[:, first : first + size]
            sums[first : first + size, first:].addmm_(part.T, rows[:, first:])
        counts[matrix] = counts.get(matrix, 0) + len(rows)

    def result(self) -> dict[str, dict[int, Hessian]]:
        """The sums are made symmetric in place: nothing can be added afterwards."""
        for found in self._sums.values():
            for sums in found.values():
                size = self.BLOCK
                for first in range(0, len(sums), size):
                    end = first + size
                    square = sums[first:end, first:end]
                    square.copy_(square.triu() + square.triu(1).T)
                    sums[end:, first:end] = sums[first:end, end:].T
        return {
            name: {matrix: Hessian(sums, self._counts[name][matrix]) for matrix, sums in found.items()}
            for name, found in self._sums.items()
        }


class MeanAbsolute(Collector[Moment]):
    """Sums of absolute values, column by column."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        rows = inputs.reshape(-1, inputs.shape[-1])
        mine, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
        sums = rows.abs().sum(0, dtype=torch.float64)
        mine[matrix] = mine[matrix] + sums if matrix in mine else sums
        counts[matrix] = counts.get(matrix, 0) + len(rows)

    def result(self) -> dict[str, dict[int, Moment]]:
        return {
            name: {
                matrix: Moment(sums.cpu().numpy(), self._counts[name][matrix])
                for matrix, sums in found.items()
            }
            for name, found in self._sums.items()
        }


class Largest(Collector[float]):
    """The largest magnitude of all inputs."""

    def __init__(self) -> None:
        self._largest: dict[str, dict[int, torch.Tensor]] = {}

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        if not inputs.numel():
            return
        found, mine = inputs.detach().abs().amax().float(), self._largest.setdefault(name, {})
        mine[matrix] = torch.maximum(mine[matrix], found) if matrix in mine else found

    def result(self) -> dict[str, dict[int, float]]:
        return {
            name: {matrix: float(size) for matrix, size in mine.items()}
            for name, mine in self._largest.items()
        }


class Sample(Collector["torch.Tensor"]):
    """``rows`` of the inputs of each matrix, or all where there are fewer: each as likely as another, the
    same ones for a seed whatever the batches."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        self._rows, self._seed = rows, seed
        self._random: dict[tuple[str, int], np.random.Generator] = {}
        self._kept: dict[str, dict[int, tuple[np.ndarray, torch.Tensor]]] = {}

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        rows = inputs.reshape(-1, inputs.shape[-1])
        if (name, matrix) not in self._random:
            own = hashlib.sha256(f"{self._seed} {matrix} {name}".encode()).digest()
            self._random[name, matrix] = np.random.default_rng(int.from_bytes(own[:8], "little"))
        keys = self._random[name, matrix].random(len(rows))
        kept = self._kept.setdefault(name, {})
        # those with the smallest keys so far, in the order in which they came
        before = len(kept[matrix][0]) if matrix in kept else 0
        every = np.concatenate([kept[matrix][0], keys]) if before else keys
        chosen = np.sort(np.argsort(every, kind="stable")[: self._rows])
        new = torch.from_numpy(chosen[chosen >= before] - before).to(rows.device)
        taken = rows[new].float()
        if before:
            old = torch.from_numpy(chosen[chosen < before]).to(rows.device)
            taken = torch.cat([kept[matrix][1][old], taken])
        kept[matrix] = every[chosen], taken

    def result(self) -> "dict[str, dict[int, torch.Tensor]]":
        return {
            name: {matrix: rows for matrix, (_, rows) in found.items()} for name, found in self._kept.items()
        }


@dataclass(frozen=True)
class Blocks:
    """``sums`` (groups, size, size) float32: X^T X of ``count`` rows X in each group of ``size`` columns."""

    sums: "torch.Tensor"
    count: int


class BlockMoments(Collector[Blocks]):
    """Sums of products of inputs of one group of columns, ``size`` of them (-1: all): the blocks on the
    diagonal of what ``Hessians`` gathers, at a fraction of the work. ``only``: of these parameters."""

    def __init__(self, size: int, only: frozenset[str]) -> None:
        self._size, self._only = size, only
        self._sums: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def _of(self, inputs: "torch.Tensor") -> "torch.Tensor":
        """Computed once for matrices that take the same inputs one after the other."""
        if self._last is None or self._last[0] is not inputs or self._last[1] != inputs._version:
            rows = inputs.reshape(-1, inputs.shape[-1]).float()
            size = self._size if self._size > 0 else rows.shape[1]
            grouped = rows.unflatten(1, (-1, size)).transpose(0, 1)
            self._last = inputs, inputs._version, grouped.transpose(1, 2) @ grouped
        return self._last[2]

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        if name not in self._only:
            return
        sums = self._of(inputs)
        mine, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
        mine[matrix] = mine[matrix] + sums if matrix in mine else sums
        counts[matrix] = counts.get(matrix, 0) + inputs.numel() // inputs.shape[-1]

    def result(self) -> dict[str, dict[int, Blocks]]:
        return {
            name: {matrix: Blocks(sums, self._counts[name][matrix]) for matrix, sums in found.items()}
            for name, found in self._sums.items()
        }
