"""A decoder layer runs again with some of its weights changed, and its products are compared with those of
the first run, and answered."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantize.calibration.products import batched_functions, operands, parameter_finder

if TYPE_CHECKING:
    import torch

#: a column that differs from a multiple of what it was by more than this share of its largest value is none;
#: sums of float32 in another order differ by a tenth of that
SAME = 2e-5
#: factors of rows lie between these
LEAST, MOST = 0.5, 2.0
#: of a column that was zero throughout the run, and of one that did not change
SILENT, UNTOUCHED = -1, -2
#: instead of an axis: the product was with some rows of a parameter only
PART = 0
Parameters = Mapping[str, "torch.Tensor"]
Run = Callable[[], Any]
#: asked for a product's output: parameter, number of its matrix (None: all), axis of its outputs (-2, -1 or
#: PART), what enters, what computes it
See = Callable[[str, "int | None", int, Any, Callable[[], Any]], Any]


@dataclass
class Product:
    name: str
    matrix: int | None
    entering: "torch.Tensor"
    output: "torch.Tensor"


@dataclass
class Recorded:
    """One run: its products in order, its output, and along which axis of each parameter its outputs lie."""

    products: list[Product] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)
    output: "list[torch.Tensor]" = field(default_factory=list)


class Otherwise(Exception):
    """A parameter changes what enters a product by more than a factor for each column."""


def record(parameters: Parameters, run: Run) -> Recorded | None:
    import torch

    recorded = Recorded()

    def see(name: str, matrix: int | None, axis: int, entering: Any, compute: Callable[[], Any]) -> Any:
        before = entering.clone()
        output = compute()
        recorded.axes[name] = PART if axis == PART else recorded.axes.get(name, axis)
        recorded.products.append(Product(name, matrix, before, output.clone()))
        return output

    recorded.output = answered(parameters, run, see)
    whole = all(bool(torch.isfinite(each).all()) for each in recorded.output)
    return recorded if whole and recorded.output else None


def origins(
    before: "torch.Tensor", now: "torch.Tensor", factors: "torch.Tensor", concerned: "torch.Tensor"
) -> "tuple[torch.Tensor, int] | None":
    """(row that each column comes from, -1 where it was zero; power); None where nothing changed. Errors:
    Otherwise where a column is not a multiple of what it was, by a factor of one of the rows."""
    import torch

    before, now = before.reshape(-1, before.shape[-1]).double(), now.reshape(-1, now.shape[-1]).double()
    if not len(before):
        return None
    largest = before.abs().amax(0)
    overall = float(largest.max())
    if bool(((now - before).abs() <= SAME / 10 * max(overall, 1e-30)).all()):
        return None
    silent = largest <= 1e-9 * max(overall, 1e-30)
    ratio = (before * now).sum(0) / before.square().sum(0).clamp_min(1e-300)
    off = (now - ratio * before).abs().amax(0) > SAME * largest
    if bool((off & ~silent).any()) or bool((silent & (now.abs().amax(0) > 1e-9 * overall)).any()):
        raise Otherwise
    for power in (1, 2):
        values, order = (factors[concerned] ** power).log().sort()
        wanted = ratio.clamp_min(1e-30).log()
        if power == 2 and len(concerned) != len(ratio):
            break
        at = torch.searchsorted(values, wanted).clamp(1, max(1, len(values) - 1))
        lower = (wanted - values[at - 1]).abs() <= (values[at.clamp_max(len(values) - 1)] - wanted).abs()
        nearest = torch.where(lower, at - 1, at.clamp_max(len(values) - 1))
        close = (values[nearest] - wanted).abs() < 0.3 * math.log(MOST / LEAST) * power / len(values)
        untouched = (wanted.abs() < 0.1 * math.log(MOST / LEAST) / len(values)) & ~close
        if bool((close | silent | untouched).all()):
            origin = torch.where(untouched, UNTOUCHED, concerned[order[nearest]])
            origin = torch.where(silent, SILENT, origin)
            if power == 1 or bool(((origin == torch.arange(len(origin))) | silent).all()):
                return origin, power
    raise Otherwise


def answered(parameters: Parameters, run: Run, see: See) -> "list[torch.Tensor]":
    """Run; ``see`` answers each product with a parameter. Returns copies of the tensors that come out."""
    from torch.overrides import TorchFunctionMode

    find, positions, batched = parameter_finder(parameters), operands(), batched_functions()

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            def compute() -> Any:
                return func(*args, **(kwargs or {}))

            places = positions.get(func)
            if places is None or len(args) <= max(places):
                return compute()
            left, right = (args[index] for index in places)
            if (found := find(right)) is not None:
                entering, weight, first = left, right, -2 if func is torch.nn.functional.linear else -1
            elif func is not torch.nn.functional.linear and (found := find(left)) is not None:
                entering, weight, first = right.transpose(-1, -2), left, -2
            else:
                return compute()
            name, matrix = found
            turned = weight.stride()[-2:] != parameters[name].stride()[-2:]
            axis = -3 - first if turned else first
            if parameters[name].dim() < 3 and weight.numel() != parameters[name].numel():
                axis = PART
            several = func in batched and parameters[name].dim() > 2
            return see(
                name, None if several or parameters[name].dim() < 3 else matrix, axis, entering, compute
            )

    with Products():
        output = run()
    return [each.clone() for each in _tensors(output)]


def _tensors(values: Any) -> "Iterator[torch.Tensor]":
    import torch

    if isinstance(values, torch.Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
