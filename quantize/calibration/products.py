"""Sees every product of a model's parameters, whichever function the code uses to multiply."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from quantize.calibration.collectors import Collector

if TYPE_CHECKING:
    import torch

#: the parameter (by any name) that a factor is a part of, and the number of its matrix; None: it is of none
Find = Callable[["torch.Tensor"], "tuple[str, int] | None"]
#: told of a product before it is computed: parameter, what enters it (..., columns), number of the matrix
See = Callable[[str, "torch.Tensor", int], None]


@contextmanager
def watching(find: Find, see: See) -> Iterator[None]:
    """While inside, in this thread, ``see`` is told of each product with a parameter that ``find`` knows."""
    import torch
    from torch.overrides import TorchFunctionMode

    positions = operands()
    batched = batched_functions()

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operands = positions.get(func)
            if operands is not None and len(args) > max(operands):
                left, right = (args[index] for index in operands)
                if func in batched:
                    _batched(find, see, left, right)
                elif (found := find(right)) is not None:
                    see(found[0], left, found[1])
                elif func is not torch.nn.functional.linear and (found := find(left)) is not None:
                    see(found[0], right.transpose(-1, -2), found[1])
            return func(*args, **(kwargs or {}))

    with Products():
        yield


@contextmanager
def collecting(
    model: "torch.nn.Module", parameters: frozenset[str], collector: Collector[Any]
) -> Iterator[None]:
    """While inside, ``collector`` is given what enters each product with one of ``parameters`` (names), in
    the forward of the module that holds it, whose weights may come and go."""
    within: list[tuple[str, torch.nn.Module]] = []
    handles = []
    for name, module in model.named_modules():
        if any(f"{name}.{own}" in parameters for own, _ in module.named_parameters(recurse=False)):
            handles.append(
                module.register_forward_pre_hook(lambda module, _, name=name: within.append((name, module)))
            )
            handles.append(module.register_forward_hook(lambda *_: within.pop() and None))

    def find(weight: "torch.Tensor") -> tuple[str, int] | None:
        if not within:
            return None
        name, module = within[-1]
        held = {f"{name}.{own}": each for own, each in module.named_parameters(recurse=False)}
        return parameter_finder(held)(weight)

    try:
        with watching(find, lambda name, inputs, matrix: collector.add(name, inputs, matrix)):
            yield
    finally:
        for handle in handles:
            handle.remove()


def parameter_finder(parameters: "Mapping[str, torch.Tensor]") -> Find:
    """Knows a factor by the memory it lies in. ``parameters`` must not move while it is used."""
    import torch

    by_place = {each.untyped_storage().data_ptr(): (name, each) for name, each in parameters.items()}

    def find(weight: Any) -> tuple[str, int] | None:
        if not isinstance(weight, torch.Tensor):
            return None
        found = by_place.get(weight.untyped_storage().data_ptr())
        if found is None:
            return None
        name, parameter = found
        return name, weight.storage_offset() // parameter.stride(0) if parameter.dim() > 2 else 0

    return find


def _batched(find: Find, see: See, left: "torch.Tensor", right: "torch.Tensor") -> None:
    """Matrices of one parameter, each multiplied with inputs of its own."""
    if (found := find(right)) is not None:
        for number, inputs in enumerate(left):
            see(found[0], inputs, found[1] + number)
    elif (found := find(left)) is not None:
        for number, inputs in enumerate(right):
            see(found[0], inputs.transpose(-1, -2), found[1] + number)


def batched_functions() -> tuple[Any, ...]:
    """Functions that multiply several matrices with inputs of their own."""
    import torch

    return torch.bmm, torch.Tensor.bmm, torch.baddbmm


@cache
def operands() -> dict[Any, tuple[int, int]]:
    """Functions by which modules multiply -> positions of the two factors, of which the second is usually the
    weight."""
    import torch

    plain = (
        torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm,
        torch.Tensor.mm, torch.bmm, torch.Tensor.bmm,
    )  # fmt: skip
    return {**dict.fromkeys(plain, (0, 1)), torch.addmm: (1, 2), torch.baddbmm: (1, 2)}
