"""Every weight of the source, read back once by a reader that shares no code with the engine nor the runtime.

What gates is exact: each is there, of its shape, finite; it equals what the engine held in memory before it
saved (``Conversion.computed``), and what that was made of equals the source; the bytes that a reader finds
under a name are those that the writer meant for it (``Conversion.checksums``). How far a weight is from its
source is recorded: it is what the recipe costs, and real models cost strange things. Only of a tensor of
which nobody says what was computed is it asked whose it is: it must not resemble another's source.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import Check
from quantize.checkpoint.entries import Entries
from quantize.dtypes import FLOATS, to_float32
from quantize.engines.base import Computed, Conversion
from quantize.errors import QuantwrightError
from quantize.formats.base import Format
from quantize.hashes import sha256_file
from quantize.hf.names import IGNORED
from quantize.methods.base import Work
from quantize.numerics import identity
from quantize.numerics.resemblance import Resemblance, Sums, compare
from quantize.verification.spill import Spill


@dataclass
class Weights:
    """What the second reader's pass found."""

    checks: list[Check] = field(default_factory=list)
    # read, but no tensor of the source: a tied head stored apart
    extra: set[str] = field(default_factory=set)
    spill: Spill | None = None


def check_weights(work: Work[Any], stage: Path, conversion: Conversion, spill: Path | None) -> Weights:
    """``spill``: folder that keeps what was read, for the logits."""
    result = Weights(spill=Spill(spill) if spill is not None else None)
    checkpoint, reading = work.checkpoint, _Reading(work, conversion.computed)
    problems = list(_changed_files(stage, conversion.sha256))
    problems = problems or list(_other_bytes(work.format, stage, conversion.checksums))
    try:
        for name, values in work.read_by_entry(stage):
            if result.spill is not None:
                values = result.spill.add(name, values)
            problems += reading.add(name, values)
    except (QuantwrightError, ValueError, KeyError) as error:
        problems.append(f"the second reader cannot read it: {error}")
    if not problems:
        problems += reading.misplaced()
    result.extra = reading.seen - set(checkpoint.tensors)
    absent = [name for name in checkpoint.tensors if name not in reading.seen and not name.endswith(IGNORED)]
    if absent and not problems:
        problems.append(f"{absent[0]} is not in the artifact")
    detail = (
        problems[0] + (f" ({len(problems) - 1} more)" if len(problems) > 1 else "")
        if problems
        else reading.summary()
    )
    result.checks.append(Check(name="weights", passed=not problems, detail=detail))
    result.checks += reading.recorded()
    return result


class _Reading:
    """What is known of the tensors read so far: a few kilobytes each."""

    def __init__(self, work: Work[Any], computed: Computed | None):
        self.checkpoint, self.computed = work.checkpoint, computed
        self.seen: set[str] = set()
        self._equal = 0
        # Where scales move from one tensor to the one before, signs are what they leave alone.
        self._rescaled = work.format.moves_scales
        self._stored = work.value_rounding
        self._likeness: dict[str, Resemblance] = {}
        self._features: dict[tuple[int, ...], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        # tensors that look like another's, though they are what the engine computed
        self._suspicious: list[str] = []

    def add(self, name: str, values: np.ndarray | Entries) -> Iterator[str]:
        """What is wrong with it."""
        if isinstance(values, Entries):
            source = self._source_entries(name, values)
            if source is not None:
                yield from self._add_entries(name, values, source)
                return
            values = values.whole()
        if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values).all():
            yield f"{name} holds NaN or Inf"
            return
        self.seen.add(name)
        if problem := self._differs(name, values):
            yield problem
        info = self.checkpoint.tensors.get(name)
        if info is None or info.dtype not in FLOATS:
            return
        if values.shape != info.shape:
            yield f"{name} has shape {list(values.shape)}, its source {list(info.shape)}"
            return
        if values.size:
            yield from self._against_source(name, self.checkpoint.read_float32(name), values)

    def _source_entries(self, name: str, values: Entries) -> Entries | None:
        """The source's tensor, where it can be compared with ``values`` one entry at a time."""
        info = self.checkpoint.tensors.get(name)
        if info is None or info.dtype not in FLOATS or info.shape != values.shape:
            return None
        read = self.checkpoint.entries(name)
        if read is None:
            return None
        return Entries(info.shape, lambda index: to_float32(read(index), info.dtype))

    def _add_entries(self, name: str, values: Entries, source: Entries) -> Iterator[str]:
        """``add``, a part of the tensor in memory at a time."""
        shape = values.shape
        count, columns, size = math.prod(shape[:-1]), shape[-1], math.prod(shape[1:])
        each, computed = count // shape[0], self.computed
        known = computed is not None and name in computed
        took = computed is not None and computed.has_source(name)
        sums, rows = Sums(), identity.RowIdentity(count, columns, self._rescaled)
        places = identity.feature_places(shape)
        taken = np.empty((2, len(places)), np.float32)
        # numbers of rows, or of values
        other: dict[str, list[np.ndarray]] = {"computed": [], "source": [], "rounded": []}
        for index, (read, own) in enumerate(zip(values, source, strict=True)):
            if not np.isfinite(read.sum(dtype=np.float64)) and not np.isfinite(read).all():
                yield f"{name} holds NaN or Inf"
                return
            sums.add(own, read)
            first = index * each
            if computed is not None and known:
                other["computed"].append(first + computed.differing_rows(name, read, first))
            if self._stored is not None:
                other["rounded"].append(index * size + _not_rounded(own, read, self._stored))
            elif computed is not None and took:
                other["source"].append(first + computed.rows_of_another_source(name, own, first))
            else:
                rows.add(read.reshape(-1, columns), own.reshape(-1, columns))
                mine = places // size == index
                for side, array in enumerate((read, own)):
                    taken[side, mine] = array.reshape(-1)[places[mine] - index * size]
        self.seen.add(name)
        self._likeness[name] = sums.resemblance()
        wrong = {kind: np.concatenate(found) for kind, found in other.items() if found}
        if known and (problem := self._not_computed(name, wrong["computed"])):
            yield problem
        if self._stored is not None:
            yield from _rounding_problem(name, wrong["rounded"])
            return
        if took:
            yield from _source_problem(name, wrong["source"])
            return
        signed = np.sign(taken) if self._rescaled else taken
        self._features.setdefault(shape, {})[name] = signed[0], signed[1]

        def row(of: Entries) -> identity.Row:
            return lambda i: of.entry(i // each).reshape(-1, columns)[i % each]

        if (moved := rows.misplaced(row(values), row(source))) is not None:
            yield from self._judged(name, f"{name}: row {moved[0]} is row {moved[1]} of its source")

    def _differs(self, name: str, values: np.ndarray) -> str:
        if self.computed is None or name not in self.computed:
            return ""
        return self._not_computed(name, self.computed.differing_rows(name, values))

    def _not_computed(self, name: str, wrong: np.ndarray) -> str:
        self._equal += not len(wrong)
        if not len(wrong):
            return ""
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"{name}: row {wrong[0]}{more} is not what the engine computed"

    def _against_source(self, name: str, source: np.ndarray, values: np.ndarray) -> Iterator[str]:
        self._likeness[name] = compare(source, values)
        if self._stored is not None:
            yield from _rounding_problem(name, _not_rounded(source, values, self._stored))
            return
        if self.computed is not None and self.computed.has_source(name):
            yield from _source_problem(name, self.computed.rows_of_another_source(name, source))
            return
        self._features.setdefault(values.shape, {})[name] = tuple(
            identity.feature(array, self._rescaled) for array in (values, source)
        )  # type: ignore[assignment]
        if (moved := identity.misplaced_row(values, source, self._rescaled)) is not None:
            yield from self._judged(name, f"{name}: row {moved[0]} is row {moved[1]} of its source")

    def misplaced(self) -> Iterator[str]:
        for tensors in self._features.values():
            names = list(tensors)
            read, source = (np.stack([pair[side] for pair in tensors.values()]) for side in (0, 1))
            for i, j in identity.misplaced(read, source):
                yield from self._judged(names[i], f"{names[i]} is {names[j]} of its source")

    def _judged(self, name: str, problem: str) -> Iterator[str]:
        """Likeness to a source tells nothing against what the engine says that it computed."""
        if self.computed is not None and name in self.computed:
            self._suspicious.append(problem)
        else:
            yield problem

    def summary(self) -> str:
        equal = f", {self._equal} equal to what the engine computed" if self.computed is not None else ""
        return f"{len(self.seen)} tensors{equal}"

    def recorded(self) -> Iterator[Check]:
        found = self._likeness
        if not found:
            return
        worst = max(found, key=lambda name: found[name].error)
        yield Check(
            name="weight error",
            passed=True,
            value=float(np.mean([likeness.error for likeness in found.values()])),
            detail=f"mean relative error of {len(found)} tensors; largest "
            f"{found[worst].error:.3g} at {worst}; recorded",
        )
        lowest = min(found, key=lambda name: found[name].worst_cosine)
        farthest = max(found, key=lambda name: abs(np.log(max(found[name].slope, 1e-30))))
        yield Check(
            name="likeness",
            passed=True,
            value=found[lowest].worst_cosine,
            detail=f"smallest cosine of a row with its source's, row {found[lowest].worst_row} of "
            f"{lowest}; size {found[farthest].slope:.3g} times the source's at {farthest}; recorded",
        )
        if self._suspicious:
            yield Check(
                name="likeness to others",
                passed=True,
                value=float(len(self._suspicious)),
                detail=f"nearer to another source than to its own: {self._suspicious[0]}; recorded",
            )


def _not_rounded(source: np.ndarray, values: np.ndarray, rounding: float) -> np.ndarray:
    """Numbers of values that are farther from their source than by that part of it."""
    apart = np.abs(values - source)
    far = apart > rounding * np.abs(source) + 2.0**-24 * (rounding > 0)
    found: np.ndarray = np.flatnonzero(far.reshape(-1))
    return found


def _rounding_problem(name: str, wrong: np.ndarray) -> Iterator[str]:
    if len(wrong):
        yield f"{name}: value {wrong[0]} is not its source's, rounded"


def _source_problem(name: str, wrong: np.ndarray) -> Iterator[str]:
    if len(wrong):
        yield f"{name}: row {wrong[0]} was quantized from something else than its source"


def _changed_files(stage: Path, written: dict[str, str]) -> Iterator[str]:
    """Files that are not, byte for byte, what was hashed while the engine's numbers were written."""
    for name, digest in written.items():
        if not (stage / name).is_file() or sha256_file(stage / name) != digest:
            yield f"{name} is not what was written"


def _other_bytes(format: Format, stage: Path, checksums: dict[str, int]) -> Iterator[str]:
    """Tensors whose bytes, where a reader of the file looks for them, are not those that were meant."""
    if not checksums:
        return
    try:
        found = format.checksums(stage)
    except QuantwrightError as error:
        yield f"the second reader cannot read it: {error}"
        return
    for name, checksum in checksums.items():
        if found.get(name) != checksum:
            other = next((each for each, value in found.items() if value == checksum), None)
            yield f"{name} is not what was written under that name" + (f"; {other} is" if other else "")
