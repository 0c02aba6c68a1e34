"""GPTQ of this program's own, a layer at a time: which matrices share a Hessian, what becomes of those that
few tokens reach, and what is said of it. The arithmetic is ``quantize.numerics.gptq``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quantize.artifact.artifact import Note
from quantize.calibration.collectors import Hessian, Hessians
from quantize.calibration.groups import Group
from quantize.calibration.layer_pass import Layer
from quantize.engines.native.parts import Part
from quantize.errors import StepFailed
from quantize.hf.matrices import Linear
from quantize.kernels.columns import column_block
from quantize.kernels.grid import grid_search
from quantize.numerics.gptq import REFINEMENTS, solve
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.rtn import round_to_nearest

if TYPE_CHECKING:
    import torch

#: where one matrix's own statistics lie: parameter, number of the matrix within it
Place = tuple[str, int]


@dataclass(frozen=True)
class GptqSettings:
    """``grids``: by name of the matrix. ``true_sequential``: each group of matrices on the outputs of the
    quantized ones before it, not only each layer. ``on_failure``: what becomes of a matrix whose Hessian
    cannot be used."""

    grids: Mapping[str, Grid]
    order: Literal["activation", "none"] = "activation"
    damping: float = 0.05
    true_sequential: bool = True
    refinements: int = REFINEMENTS
    on_failure: Literal["fail", "rtn"] = "fail"


def gptq_solver(settings: GptqSettings) -> "Callable[[Layer, tuple[Linear, ...], int], Part]":
    """What ``quantized_layers`` asks for. Errors of the part: StepFailed that names the matrix."""

    def solve_layer(layer: Layer, linears: tuple[Linear, ...], statistics_bytes: int) -> Part:
        part = Part()
        by_parameter: dict[str, list[Linear]] = {}
        for linear in linears:
            by_parameter.setdefault(linear.parameter, []).append(linear)
        wanted = [group for group in layer.groups if by_parameter.keys() & set(group.parameters)]
        for stage in [[group] for group in wanted] if settings.true_sequential else [wanted]:
            mine = [
                linear
                for group in stage
                for name in group.parameters
                for linear in by_parameter.get(name, ())
            ]
            _solve_stage(layer, stage, mine, settings, statistics_bytes, part)
        return part

    return solve_layer


def _solve_stage(
    layer: Layer,
    groups: Sequence[Group],
    linears: Sequence[Linear],
    settings: GptqSettings,
    statistics_bytes: int,
    part: Part,
) -> None:
    """Gather the Hessians of ``groups`` as the layer is now, solve ``linears``, write them into the layer."""
    leader = {name: lead for group in groups for name, lead in group.leader.items()}
    together: dict[tuple[Place, Grid], list[Linear]] = {}
    for linear in linears:
        place = leader[linear.parameter], linear.matrix
        together.setdefault((place, settings.grids[linear.name]), []).append(linear)
    solved: list[tuple[Linear, Codes]] = []
    for places, hessian_of in _gathered(layer, groups, linears, leader, statistics_bytes):
        for (place, grid), mine in together.items():
            if place in places:
                solved += _solve(layer, mine, grid, hessian_of(place), settings, part)
    for linear, codes in solved:  # only now: the others of the stage were to see the layer as it was
        part.codes[linear.name] = codes
        linear.place(layer.parameters[linear.parameter], codes.values())


@dataclass(frozen=True)
class _Found:
    """``own``: tokens that reached the matrix; ``hessian``: None where none reached any like it."""

    hessian: Hessian | None
    own: int
    mixed: bool


def _gathered(
    layer: Layer,
    groups: Sequence[Group],
    linears: Sequence[Linear],
    leader: Mapping[str, str],
    statistics_bytes: int,
) -> "Iterator[tuple[set[Place], Callable[[Place], _Found]]]":
    """Some of the places at a time, as many as ``statistics_bytes`` hold, and what was found of each."""
    inputs: dict[Place, int] = {(leader[each.parameter], each.matrix): each.inputs for each in linears}
    experts = {
        lead
        for group in groups
        if not group.plain
        for lead in group.leaders
        if sum(1 for place in inputs if place[0] in group.leaders) > 1
    }
    kinds = {lead: group.parameters[0] for group in groups for lead in group.leaders}
    shared: dict[str, Hessian] = {}
    chunks = list(_chunks(inputs, statistics_bytes))
    if len(chunks) > 1:  # what all share is needed with the first: gathered before, in the same order
        for chunk in chunks:
            if experts & {name for name, _ in chunk}:
                _add(shared, _hessians(layer, groups, chunk), kinds, experts)
    for chunk in chunks:
        found = _hessians(layer, groups, chunk)
        if len(chunks) == 1:
            _add(shared, found, kinds, experts)

        def look(place: Place, found: Any = found, shared: Any = shared) -> _Found:
            name, matrix = place
            own = found.get(name, {}).get(matrix)
            everyone = shared.get(kinds[name]) if name in experts else None
            return _mixed(own, everyone, inputs[place])

        yield set(chunk), look


def _chunks(inputs: Mapping[Place, int], statistics_bytes: int) -> Iterator[list[Place]]:
    chunk: list[Place] = []
    size = 0
    for place, columns in inputs.items():
        if chunk and size + 4 * columns**2 > statistics_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(place)
        size += 4 * columns**2
    yield chunk


def _hessians(layer: Layer, groups: Sequence[Group], chunk: Sequence[Place]) -> dict[str, dict[int, Hessian]]:
    only: dict[str, set[int]] = {}
    for name, matrix in chunk:
        only.setdefault(name, set()).add(matrix)
    hessians = Hessians(only)
    layer.gather([group for group in groups if only.keys() & set(group.leaders)], hessians)
    return hessians.result()


def _add(
    shared: dict[str, Hessian],
    found: Mapping[str, Mapping[int, Hessian]],
    kinds: Mapping[str, str],
    experts: set[str],
) -> None:
    """To the sums of all experts of a kind, by number of expert."""
    for name in sorted(experts & found.keys()):
        for _, each in sorted(found[name].items()):
            before = shared.get(kinds[name])
            shared[kinds[name]] = (
                Hessian(before.sums.add_(each.sums), before.count + each.count)
                if before
                else Hessian(each.sums.clone(), each.count)
            )


def _mixed(own: Hessian | None, everyone: Hessian | None, columns: int) -> _Found:
    """An expert that fewer tokens reached than it has inputs gets as many of the average token of all
    experts as are missing."""
    count = own.count if own else 0
    if everyone is None or count >= columns:
        return _Found(own, count, False)
    share = (columns - count) / everyone.count
    sums = everyone.sums * share
    return _Found(Hessian(sums + own.sums if own else sums, columns), count, True)


def _solve(
    layer: Layer,
    linears: Sequence[Linear],
    grid: Grid,
    found: _Found,
    settings: GptqSettings,
    part: Part,
) -> "list[tuple[Linear, Codes]]":
    """Matrices that multiply the same inputs, as one with all their rows."""
    import torch

    weights = [linear.held(layer.parameters[linear.parameter]).float() for linear in linears]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
    names = ", ".join(linear.name for linear in linears)
    if found.mixed:
        part.notes += [
            Note(
                tensor=linear.name,
                what=f"statistics of its {found.own} tokens and of all experts of its layer",
                why=f"fewer tokens than its {linear.inputs} inputs reached it",
            )
            for linear in linears
        ]
    try:
        if found.hessian is None:
            raise StepFailed("no calibration token reached it; use more or other calibration text")
        solved = solve(
            weight,
            found.hessian.sums,
            grid,
            order=settings.order,
            damping=settings.damping,
            refinements=settings.refinements,
            run=column_block(),
            search=grid_search(),
        )
    except StepFailed as error:
        if settings.on_failure != "rtn":
            raise StepFailed(f"{names}: {error} (or on_failure=rtn, which rounds it to nearest)") from None
        codes = round_to_nearest(weight, grid, search=grid_search())
        part.notes += [
            Note(tensor=linear.name, what="rounded to nearest, without calibration", why=str(error))
            for linear in linears
        ]
        return list(zip(linears, _split(codes, linears), strict=True))
    if solved.damping_used > settings.damping:
        part.notes += [
            Note(
                tensor=linear.name,
                what=f"damping raised from {settings.damping:g} to {solved.damping_used:g}",
                why="its Hessian was not positive definite on the calibration text",
            )
            for linear in linears
        ]
    pieces = list(_split(solved.codes, linears))
    for linear, weight, codes in zip(linears, weights, pieces, strict=True):
        part.losses[linear.name] = _loss(weight - codes.values(), found.hessian)
    return list(zip(linears, pieces, strict=True))


def _loss(errors: "torch.Tensor", hessian: Hessian) -> float:
    """Mean over tokens of the squared error of the outputs, all together: of ``errors`` (o, i) of the
    weights."""
    return float(((errors @ hessian.sums) * errors).sum()) / hessian.count


def _split(codes: Codes, linears: Sequence[Linear]) -> Iterator[Codes]:
    first = 0
    for linear in linears:
        rows = slice(first, first + linear.outputs)
        yield Codes(codes.codes[rows], codes.scales[rows], codes.zeros[rows])
        first += linear.outputs
