"""Where AWQ's scales can go: found by trying, in one decoder layer, what a change of each weight does.

The columns of a linear layer may be multiplied by s if what computes its inputs divides them by s: a norm,
the up projection before a down projection, the values before an attention's output. Nothing is known here of
any architecture. The layer runs on a few tokens; then again with the rows of one parameter multiplied by
factors that are all different. Where every column that enters some weights is a constant multiple of what it
was, the constants tell which row each column comes from. Each of these products is answered with what it gave
before, as if its weight had been divided: so if nothing else depends on that parameter, the layer's output is
what it was, and if it is not, the parameter is no place for scales.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quantize.calibration.replay import (
    LEAST,
    MOST,
    PART,
    SILENT,
    UNTOUCHED,
    Otherwise,
    Parameters,
    Recorded,
    Run,
    answered,
    origins,
    record,
)

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Place:
    """Rows of a weight that may take the inverse of scales: of ``names`` (several: experts that are stored
    one by one), along the axis of their outputs. ``biases`` go along. ``plus_one``: a norm whose weight is
    stored less one. ``rows``: those concerned, None for all."""

    names: tuple[str, ...]
    biases: tuple[str, ...]
    axis: int
    plus_one: bool = False
    rows: "torch.Tensor | None" = None


@dataclass(frozen=True)
class Fold:
    """``consumers``: parameters whose columns are multiplied by scales (i,), of experts those of every
    matrix, and the axis (-2 or -1) along which their outputs lie; ``origin`` (i,) int64: the row of ``place``
    that each column is a multiple of. ``power``: by which power of a factor of that row it is multiplied."""

    place: Place
    consumers: Mapping[str, int]
    origin: "torch.Tensor"
    power: int = 1


def find_folds(
    parameters: Parameters, run: Run, blocks: Sequence[int] = (), known: Sequence[Fold] | None = None
) -> tuple[Fold, ...]:
    """Of one layer. ``parameters``: all it has, by name, float32; written into and restored. ``run`` runs it
    on a few tokens, on the same at every call. ``blocks``: sizes of blocks of rows, an attention head's, that
    are tried one by one in a weight that joins several. ``known``: those of another layer of the same kind,
    by the names of this one, which are tried first and are all that is tried if they hold.

    A weight's columns get one fold, of a norm where there is one. Errors: none; what cannot be told from the
    run, because a product is not repeated or a value is not finite, is no fold.
    """
    recorded = record(parameters, run)
    if recorded is None:
        return ()
    if known is not None:
        again = [_try(parameters, run, recorded, fold.place) for fold in known]
        if all(new is not None and _alike(new, fold) for new, fold in zip(again, known, strict=True)):
            return tuple(known)
    found: list[Fold] = []
    taken: set[str] = set()
    for places in _places(parameters, recorded, blocks):
        fold = _first(parameters, run, recorded, places)
        if fold is not None and not taken & set(fold.consumers):
            found.append(fold)
            taken |= set(fold.consumers)
    return tuple(found)


def apply_fold(
    fold: Fold, scales: "torch.Tensor", parameters: "dict[str, torch.Tensor]", matrix: int | None = None
) -> None:
    """Multiply the columns of the consumers by ``scales`` (i,), equal where ``origin`` is, and divide what
    they come from, in place; ``matrix``: of experts, where only those of one are meant."""
    import torch

    rows = parameters[fold.place.names[0]].shape[fold.place.axis]
    factors = torch.ones(rows, device=scales.device)
    factors[fold.origin] = scales ** (-1 / fold.power)
    multiply_rows(fold.place, factors, parameters, matrix)
    for name, axis in fold.consumers.items():
        held = parameters[name] if matrix is None else parameters[name][matrix]
        held.mul_(scales if axis == -2 else scales[:, None])


def multiply_rows(
    place: Place, factors: "torch.Tensor", parameters: Parameters, matrix: int | None = None
) -> None:
    """The rows of ``place`` by ``factors`` (rows,), in place."""
    for name in place.names:
        held = parameters[name] if matrix is None else parameters[name][matrix]
        if place.plus_one:
            held.copy_((held + 1) * factors - 1)
        else:
            held.mul_(factors if held.dim() == 1 or place.axis == -1 else factors[:, None])
    for name in place.biases:
        (parameters[name] if matrix is None else parameters[name][matrix]).mul_(factors)


def _places(parameters: Parameters, recorded: Recorded, blocks: Sequence[int]) -> "Iterator[Iterator[Place]]":
    """Candidates, norms first; of each parameter from the likeliest on."""
    for name, each in parameters.items():
        if each.dim() == 1 and not name.endswith("bias"):
            bias = _bias(name, parameters)
            yield iter([Place((name,), bias, -1), Place((name,), bias, -1, plus_one=True)])
    classes: dict[str, list[str]] = {}
    for name, each in parameters.items():
        if each.dim() > 1 and recorded.axes.get(name, PART) != PART:
            classes.setdefault(_EXPERT.sub("*", name), []).append(name)
    for names in classes.values():
        biases = tuple(bias for name in names for bias in _bias(name, parameters))
        axis = recorded.axes[names[0]]
        yield _subsets(Place(tuple(names), biases, axis), parameters[names[0]].shape[axis], blocks)


def _subsets(whole: Place, rows: int, blocks: Sequence[int]) -> "Iterator[Place]":
    """All rows; then a half, or every other one, of what joins a gate and an up projection."""
    import torch

    yield whole
    every = torch.arange(rows)
    for part in (every[rows // 2 :], every[: rows // 2], every[1::2], every[::2]):
        yield Place(whole.names, whole.biases, whole.axis, rows=part)
    for size in blocks:
        if rows % size == 0 and rows // size > 1:
            yield Place(whole.names, whole.biases, whole.axis, rows=every.reshape(-1, size))


def _bias(name: str, parameters: Parameters) -> tuple[str, ...]:
    base = name.removesuffix("weight") + "bias" if name.endswith("weight") else f"{name}_bias"
    return (base,) if base in parameters else ()


def _first(parameters: Parameters, run: Run, recorded: Recorded, places: Iterator[Place]) -> Fold | None:
    import torch

    for place in places:
        if place.rows is not None and place.rows.dim() == 2:  # blocks, one by one
            good = [
                block
                for block in place.rows
                if _try(parameters, run, recorded, _of(place, block)) is not None
            ]
            if not good:
                continue
            place = _of(place, torch.cat(good))
        fold = _try(parameters, run, recorded, place)
        complete = _complete(fold, _concerned(place, parameters)) if fold else None
        if complete is not None:
            return complete
    return None


def _concerned(place: Place, parameters: Parameters) -> "torch.Tensor":
    import torch

    rows = parameters[place.names[0]].shape[place.axis]
    return torch.arange(rows) if place.rows is None else place.rows


def _of(place: Place, rows: "torch.Tensor") -> Place:
    return Place(place.names, place.biases, place.axis, place.plus_one, rows)


def _try(parameters: Parameters, run: Run, recorded: Recorded, place: Place) -> Fold | None:
    """Whether the layer gives what it gave, with other rows in ``place`` and every product that sees their
    factors answered as before."""
    import torch

    rows = parameters[place.names[0]].shape[place.axis]
    concerned = _concerned(place, parameters)
    # Spread over the rows so that neighbours differ much; each differs from all others by enough to be told.
    order = torch.randperm(len(concerned), generator=torch.Generator().manual_seed(len(concerned)))
    steps = (order.double() + 0.5) / (len(concerned) + len(concerned) % 2)  # none is exactly one
    factors = torch.ones(rows, dtype=torch.float64)
    factors[concerned] = LEAST * (MOST / LEAST) ** steps
    reached: dict[tuple[str, int | None], tuple[torch.Tensor, int]] = {}
    products = iter(recorded.products)

    def see(name: str, matrix: int | None, axis: int, entering: Any, compute: Callable[[], Any]) -> Any:
        before = next(products, None)
        if before is None or (before.name, before.matrix) != (name, matrix):
            raise Otherwise
        if before.entering.shape != entering.shape:
            raise Otherwise
        told = origins(before.entering, entering, factors, concerned)
        if told is not None:
            again = reached.get((name, matrix), told)
            if name in place.names or recorded.axes[name] == PART or again[1] != told[1]:
                raise Otherwise
            reached[name, matrix] = told
        return compute() if name in place.names else before.output.clone()  # may be added to in place

    kept = {name: parameters[name].clone() for name in (*place.names, *place.biases)}
    try:
        multiply_rows(place, factors.float().to(parameters[place.names[0]].device), parameters)
        output = answered(parameters, run, see)
    except Otherwise:
        return None
    finally:
        for name, values in kept.items():
            parameters[name].copy_(values)
    if not reached or next(products, None) is not None:
        return None
    for one, other in zip(output, recorded.output, strict=True):
        if float((one - other).abs().max()) > 1e-6 * float(other.abs().max()):
            return None
    return _joined(place, reached, parameters, recorded.axes)


def _joined(
    place: Place,
    reached: "Mapping[tuple[str, int | None], tuple[torch.Tensor, int]]",
    parameters: Parameters,
    axes: Mapping[str, int],
) -> Fold | None:
    """One fold of what all products told: the same origin of every column, where each told it."""
    import torch

    origins = [origin for origin, _ in reached.values()]
    powers = {power for _, power in reached.values()}
    if len({len(origin) for origin in origins}) > 1 or len(powers) > 1:
        return None
    origin = torch.stack(origins).amax(0)
    if any(bool(((each != origin) & (each != SILENT)).any()) for each in origins):
        return None
    kinds = {_EXPERT.sub("*", name): axes[name] for name, _ in reached}
    # experts that no token of the run reached are like the others
    like = {name: _EXPERT.sub("*", name) for name in parameters}
    consumers = {name: kinds[kind] for name, kind in like.items() if kind in kinds}
    return Fold(place, consumers, origin, powers.pop())


def _complete(fold: Fold, concerned: "torch.Tensor") -> Fold | None:
    """The fold with an origin for every column; None where one has none."""
    import torch

    origin = fold.origin
    silent = origin == SILENT
    if bool((origin == UNTOUCHED).any()):
        return None
    if bool(silent.any()):
        columns = torch.arange(len(origin))
        shift = (origin - columns)[~silent]
        if bool((shift != shift[0]).any()):
            return None
        origin = columns + shift[0]
        if int(origin.min()) < 0 or not set(origin.tolist()) <= set(concerned.tolist()):
            return None
    return replace(fold, origin=origin)


def _alike(one: Fold, other: Fold) -> bool:
    import torch

    told = one.origin >= 0
    return one.power == other.power and torch.equal(one.origin[told], other.origin[told])
