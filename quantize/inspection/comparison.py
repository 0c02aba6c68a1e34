"""Two models tensor by tensor, one tensor of each in memory at a time; their headers and tokenizers too."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from quantize.errors import StepFailed
from quantize.inspection.headers import Setting, TokenizerDifference, settings, tokenizers
from quantize.inspection.problems import EMBEDDING
from quantize.inspection.sides import Side, open_sides
from quantize.inspection.tensors import part_of
from quantize.numerics.differences import Difference, difference
from quantize.progress import progress_bar
from quantize.terminal import printable
from quantize.units import spell_size

NAME = 200
#: of tensors of one model whose partner in the other has not come yet
WAITING_BYTES = 2 << 30


@dataclass(frozen=True)
class Pair:
    """One tensor in both models. ``difference`` is None where the shapes differ."""

    name: str
    kinds: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    difference: Difference | None


@dataclass
class Comparison:
    """``pairs`` in the order in which they were read; ``only``: names that one of the two has."""

    first: str
    second: str
    pairs: list[Pair] = field(default_factory=list)
    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    settings: list[Setting] = field(default_factory=list)
    tokenizer: TokenizerDifference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """The weights: every one is in both, and the same."""
        return not any(self.only) and all(p.difference is not None and p.difference.equal for p in self.pairs)

    def worst(self) -> list[Pair]:
        """Those of other shapes first, then by error."""
        return sorted(
            self.pairs, key=lambda p: (p.difference is not None, -p.difference.error if p.difference else 0)
        )

    def document(self) -> dict[str, Any]:
        """For ``--json``; an error that is infinite is null."""
        found = asdict(self)
        for pair in found["pairs"]:
            its = pair["difference"]
            if its and its["error"] == float("inf"):
                its["error"] = None
        return found | {"equal": self.equal}


def compare(first: str, second: str, progress: bool = False) -> Comparison:
    """``second`` is what errors are relative to: the source, where one of them is.

    Errors: BadInput, Unsupported where the weights of one cannot be read, or not beside the other's;
    StepFailed where tensors come in orders too different to hold what waits.
    """
    a, b = open_sides(first, second)
    found = Comparison(first, second, notes=[f"{side.model}: {side.note}" for side in (a, b) if side.note])
    total = max(len(a.kinds), len(b.kinds))
    with progress_bar("comparing", total, "tensors", progress) as advance:
        for name, mine, theirs, where in _pairs(a, b, found.only):
            shapes = (tuple(mine.shape), tuple(theirs.shape))
            its = difference(mine, theirs) if shapes[0] == shapes[1] else None
            kinds = (a.kinds.get(name, ""), b.kinds.get(where, ""))
            found.pairs.append(Pair(printable(name, NAME), kinds, shapes, its))
            advance(1)
    found.settings = settings(a, b)
    found.tokenizer = tokenizers(a, b)
    return found


def _pairs(
    a: Side, b: Side, only: tuple[list[str], list[str]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, str]]:
    """(name, a's, b's, b's name of it)"""
    if b.names:
        seen: set[str] = set()
        for name, mine in a.stream():
            where = _partner(name, b)
            if where:
                seen.add(where)
                yield name, mine, b.read(where), where
            else:
                only[0].append(printable(name, NAME))
        only[1].extend(printable(name, NAME) for name in b.names if name not in seen)
    elif a.names:
        turned: tuple[list[str], list[str]] = ([], [])
        for name, theirs, mine, where in _pairs(b, a, turned):
            yield where, mine, theirs, name
        only[0].extend(turned[1])
        only[1].extend(turned[0])
    else:
        yield from _both_streamed(a, b, only)


def _partner(name: str, other: Side) -> str:
    """What ``other`` has of that tensor: of a head that it ties, the embedding. "" where nothing."""
    if name in other.kinds or name in other.names:
        return name if name in other.names else ""
    if part_of(name) == "head" and name.endswith(".weight"):
        return next((known for known in other.names if known.endswith(EMBEDDING)), "")
    return ""


def _both_streamed(
    a: Side, b: Side, only: tuple[list[str], list[str]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, str]]:
    streams = [a.stream(), b.stream()]
    waiting: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    held, going = 0, [True, True]
    while any(going):
        for side, stream in enumerate(streams):
            found = next(stream, None) if going[side] else None
            if found is None:
                going[side] = False
                continue
            name, values = found
            if (other := waiting[1 - side].pop(name, None)) is not None:
                held -= other.nbytes
                mine, theirs = (values, other) if side == 0 else (other, values)
                yield name, mine, theirs, name
                continue
            waiting[side][name] = values
            held += values.nbytes
            if held > WAITING_BYTES:
                raise StepFailed(
                    f"{a.model} and {b.model}: hold their tensors in orders too different to compare them in "
                    f"{spell_size(WAITING_BYTES)}; compare each with their source"
                )
    for side in (0, 1):
        only[side].extend(printable(name, NAME) for name in waiting[side])
