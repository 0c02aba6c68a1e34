"""Sees every product of a model's parameters, whichever function the code uses to multiply."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantize.calibration.collectors import Collector

if TYPE_CHECKING:
    import torch


@contextmanager
def collecting(
    model: "torch.nn.Module", parameters: frozenset[str], collector: Collector[Any]
) -> Iterator[None]:
    """While inside, ``collector`` is given what enters each product with one of ``parameters`` (names)."""
    from torch.overrides import TorchFunctionMode

    within: list[tuple[str, torch.nn.Module]] = []
    positions = _operands()

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operands = positions.get(func)
            if within and operands is not None and len(args) > max(operands):
                _give(collector, within[-1], *(args[index] for index in operands))
            return func(*args, **(kwargs or {}))

    handles = []
    for name, module in model.named_modules():
        if any(f"{name}.{own}" in parameters for own, _ in module.named_parameters(recurse=False)):
            handles.append(
                module.register_forward_pre_hook(lambda module, _, name=name: within.append((name, module)))
            )
            handles.append(module.register_forward_hook(lambda *_: within.pop() and None))
    try:
        with Products():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _give(
    collector: Collector[Any], within: "tuple[str, torch.nn.Module]", entering: Any, weight: Any
) -> None:
    """A product within a module: with which of its parameters, and which matrix of that one?"""
    name, module = within
    for own, parameter in module.named_parameters(recurse=False):
        if weight.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            matrix = weight.storage_offset() // parameter.stride(0) if parameter.dim() > 2 else 0
            collector.add(f"{name}.{own}", entering, matrix)


def _operands() -> dict[Any, tuple[int, int]]:
    """Functions by which modules multiply -> positions of what enters, and of the weight."""
    import torch

    plain = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
    return {**dict.fromkeys(plain, (0, 1)), torch.addmm: (1, 2)}
