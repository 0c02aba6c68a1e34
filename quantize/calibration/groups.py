"""Which of a layer's weights take the same input, told from one run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Group:
    """Parameters that are used together: those that take one input, and the experts of a layer (stored in one
    parameter or one by one), each on the tokens that it is given.

    ``leader``: of each parameter, the first that takes the same input: statistics are gathered under its
    name. ``first`` and ``last``: places of their products in the run; ``counts``: how many those are.
    ``plain``: no experts, so that every run has the same products.
    """

    parameters: tuple[str, ...]
    leader: Mapping[str, str]
    first: int
    last: int
    counts: Mapping[str, int]
    plain: bool

    @property
    def leaders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.leader.values()))


@dataclass
class Trace:
    """The products of one run, in order: parameter, and what tells its input from others."""

    products: "list[tuple[str, tuple[int, int, int]]]" = field(default_factory=list)
    _held: "list[torch.Tensor]" = field(default_factory=list)

    def see(self, name: str, inputs: "torch.Tensor", matrix: int) -> None:
        # held, so that no other tensor gets its place in memory
        self._held.append(inputs)
        place = inputs.untyped_storage().data_ptr(), int(inputs.storage_offset()), inputs.numel()
        self.products.append((name, place))

    def release(self) -> None:
        self._held.clear()


def grouped(
    trace: Trace, parameters: tuple[str, ...], batched: frozenset[str], layer: str
) -> tuple[Group, ...]:
    """``batched``: parameters that hold several matrices. Parameters that the run did not use come last,
    unless they are experts like others that it used."""
    end = len(trace.products)
    inputs: dict[str, list[tuple[int, int, int]]] = {}
    places: dict[str, list[int]] = {}
    for at, (name, place) in enumerate(trace.products):
        inputs.setdefault(name, []).append(place)
        places.setdefault(name, []).append(at)
    leader: dict[str, str] = {}
    by_inputs: dict[tuple[tuple[int, int, int], ...], str] = {}
    for name, found in inputs.items():
        leader[name] = by_inputs.setdefault(tuple(found), name)
    leader |= {name: name for name in parameters if name not in leader}
    members: dict[str, list[str]] = {}
    for name in leader:
        own = layer + _NUMBER.sub("*", leader[name].removeprefix(layer))
        members.setdefault(own, []).append(name)
    groups = []
    for own, names in members.items():
        seen = [at for name in names for at in places.get(name, ())]
        groups.append(
            Group(
                tuple(names),
                {name: leader[name] for name in names},
                min(seen, default=end),
                max(seen, default=end),
                {name: len(places.get(name, ())) for name in names},
                "*" not in own and bool(seen) and not batched & set(names),
            )
        )
    return tuple(sorted(groups, key=lambda group: (group.first, group.parameters)))
