"""What a pass over calibration windows gathers of the activations that enter each weight."""

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


class SecondMoments(Collector[Moment]):
    """Sums of squares, column by column: the diagonal of what a Hessian would hold."""

    def __init__(self) -> None:
        self._squares: dict[str, dict[int, torch.Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def add(self, name: str, inputs: "torch.Tensor", matrix: int = 0) -> None:
        import torch

        squares = inputs.reshape(-1, inputs.shape[-1]).square().sum(0, dtype=torch.float64)
        mine, counts = self._squares.setdefault(name, {}), self._counts.setdefault(name, {})
        mine[matrix] = mine[matrix] + squares if matrix in mine else squares
        counts[matrix] = counts.get(matrix, 0) + inputs.numel() // inputs.shape[-1]

    def result(self) -> dict[str, dict[int, Moment]]:
        return {
            name: {
                matrix: Moment(sums.cpu().numpy(), self._counts[name][matrix])
                for matrix, sums in squares.items()
            }
            for name, squares in self._squares.items()
        }
