"""Products that a layer has computed are not computed again while what went into them stays the same.

GPTQ runs a layer once for each of its groups of matrices, on the outputs of those that are quantized already:
the beginning of each run repeats the one before. What costs time there, products and attention, is kept.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantize.calibration.products import operands, parameter_finder

if TYPE_CHECKING:
    import torch


@dataclass
class _Kept:
    """``value`` as it was when its version was ``version``; ``weight``: the parameter in it, and its
    version."""

    value: "torch.Tensor"
    version: int
    weight: "tuple[torch.Tensor, int] | None"

    @property
    def holds(self) -> bool:
        """Neither the parameter nor the value itself was written into since."""
        if self.weight is not None and self.weight[0]._version != self.weight[1]:
            return False
        return self.value._version == self.version


class Memory:
    """What is kept of all batches of a layer, at most ``budget_bytes``."""

    def __init__(self, budget_bytes: int):
        self.left = budget_bytes
        self._runs: dict[int, list[_Kept]] = {}

    def of(self, number: int) -> list[_Kept]:
        return self._runs.setdefault(number, [])

    def keep(self, run: list[_Kept], value: _Kept) -> bool:
        """False where it does not fit."""
        if value.value.nbytes > self.left:
            return False
        self.left -= value.value.nbytes
        run.append(value)
        return True

    def cut(self, run: list[_Kept], at: int) -> None:
        self.left += sum(kept.value.nbytes for kept in run[at:])
        del run[at:]

    def drop(self, number: int) -> None:
        self.cut(self._runs.pop(number, []), 0)


@contextmanager
def repeating(
    memory: Memory,
    number: int,
    parameters: "Mapping[str, torch.Tensor]",
    unsettled: frozenset[str],
    keeps: bool,
) -> Iterator[None]:
    """While inside, one run of a layer on batch ``number``: its products and attentions, by their order, are
    those kept before, as far as nothing that they are made of has changed. ``parameters``: those that may
    change, by name; where it ``keeps``, products up to the first with one of ``unsettled`` are kept."""
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    kept, find, positions = memory.of(number), parameter_finder(parameters), operands()

    def name_of(args: Any, places: tuple[int, int] | None) -> str | None:
        for place in places or ():
            if place < len(args) and (found := find(args[place])) is not None:
                return found[0]
        return None

    class Repeated(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.at, self.keeps = 0, keeps

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            places = positions.get(func)
            if places is None and func is not scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            at = self.at
            self.at += 1
            if at < len(kept):
                if kept[at].holds:
                    return kept[at].value
                memory.cut(kept, at)
            name = name_of(args, places)
            if name in unsettled:
                self.keeps = False
            value = func(*args, **(kwargs or {}))
            if self.keeps and at == len(kept):
                weight = None if name is None else (parameters[name], parameters[name]._version)
                self.keeps = memory.keep(kept, _Kept(value, value._version, weight))
            return value

    with Repeated():
        yield
