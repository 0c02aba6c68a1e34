"""Does each weight that was read resemble its source's? What is asked is coarse on purpose: a recipe may
cost much, and rightly, but it does not turn a weight around, give it another's place or a hundred times its
size."""

from collections.abc import Callable, Iterator

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS
from quantize.inspection.findings import Findings
from quantize.inspection.scales import OFF_BY_ONE, UNINITIALISED
from quantize.numerics import identity
from quantize.numerics.faults import misgrouped, same_signs, zero_point_shift
from quantize.numerics.resemblance import compare

#: cosine with the source below which nothing of it is left; of two bits with one scale for 128 normal values
#: some .8 is
NOTHING = 0.5
#: the same where scales alone are wrong: signs stay, sizes do not
SIZES, SIGNS = 0.7, 0.9
#: part of the signs of large values that anything made of the source keeps; half are equal by chance
KEPT_SIGNS = 0.75
#: how many times larger or smaller values may be: by rounding, and where scales move between tensors
SLOPE, MOVED_SLOPE = 4.0, 64.0
#: how far from one step a mean shift of zero points may be
SHIFT = 0.35
#: part of the inputs that another group explains; what that leaves of the squared error, and how large that
#: may be beside the weights themselves: rounding to two bits leaves some .15
OTHER_GROUPS, LEFT, FITS = 0.25, 0.5, 0.2
#: fewest values of which any of this tells something
FEWEST = 32
ANOTHERS = "another tensor's weights"
NO_LIKENESS = "nothing of its source"
WRONG_SIDE = "scale on the wrong side"
MISGROUPED = "groups of inputs in another order"

#: of a packed matrix: codes (i, o), zero points and scales (g, o), group of each input (i,)
Packed = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Likeness:
    """``moved``: scales move between tensors, so that of sizes little is asked. ``packed``: what is stored
    of a matrix in groups of inputs, None where it is not one. ``stored_scale``: what else is said of the
    scales of a tensor."""

    def __init__(
        self,
        source: Checkpoint,
        findings: Findings,
        *,
        moved: bool,
        packed: Callable[[str], Packed | None],
        stored_scale: Callable[[str], str],
    ):
        self._source, self._findings = source, findings
        self._moved, self._packed, self._stored_scale = moved, packed, stored_scale
        self._features: dict[tuple[int, ...], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        #: tensors that may be another's, and what to say where nobody's source is nearer
        self._unlike: dict[str, str] = {}
        self.seen: set[str] = set()

    def add(self, name: str, values: np.ndarray) -> None:
        """One tensor (any shape) float32, by its name in the source."""
        self.seen.add(name)
        info = self._source.tensors.get(name)
        if info is None or info.dtype not in FLOATS or values.size == 0:
            return
        if values.shape != info.shape:
            why = f"its shape is {list(values.shape)}, its source's {list(info.shape)}"
            self._findings.add("another shape", name, why)
            return
        source = self._source.read_float32(name)
        if name in self._findings.about:
            return
        if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values).all():
            bad = int(values.size - np.isfinite(values).sum())
            self._findings.add(UNINITIALISED, name, f"{bad:,} of its values are NaN or Inf")
        elif not values.any() and source.any():
            self._findings.add(UNINITIALISED, name, "every value reads as zero")
        else:
            self._compare(name, values, source)

    def _compare(self, name: str, values: np.ndarray, source: np.ndarray) -> None:
        for label, mine, theirs in _slices(name, values, source):
            if theirs.size >= FEWEST:
                features = tuple(identity.feature(each, self._moved) for each in (mine, theirs))
                self._features.setdefault(mine.shape, {})[label] = features  # type: ignore[assignment]
        if source.size < FEWEST or not source.any():
            return
        packed = self._packed(name) if values.ndim == 2 else None
        if packed is not None and self._in_groups(name, values, source, packed):
            return
        found = compare(source, values)
        signs = same_signs(values, source)
        cosine = found.slope / np.hypot(found.slope, _residual(found.error, found.slope))
        most = MOVED_SLOPE if self._moved else SLOPE
        if not self._moved and cosine < SIZES and signs >= SIGNS:
            why = f"signs are its source's, sizes are not: cosine {cosine:.2f}"
            self._findings.add(UNINITIALISED, name, why)
        elif signs < KEPT_SIGNS or (not self._moved and cosine < NOTHING):
            self._unlike[name] = (
                f"{signs:.0%} of its signs are its source's, cosine {cosine:.2f}: initial values, or another "
                "model's"
            )
        elif not 1 / most < found.slope < most:
            more = self._stored_scale(name)
            why = f"values are {found.slope:.3g} times its source's" + (f"; {more}" if more else "")
            self._findings.add(WRONG_SIDE, name, why)

    def _in_groups(self, name: str, values: np.ndarray, source: np.ndarray, packed: Packed) -> bool:
        codes, zeros, scales, groups = packed
        shift = zero_point_shift(values, source, scales[groups].T)
        if abs(abs(shift) - 1) < SHIFT:
            side = "too large" if shift > 0 else "too small"
            self._findings.add(
                OFF_BY_ONE, name, f"every value is one step {side}: zero points of the format's other version"
            )
            return True
        if len(scales) > 1 and not self._moved:
            other, left, best = misgrouped(codes, zeros, scales, groups, source)
            if other > OTHER_GROUPS and left < LEFT and best < FITS:
                why = (
                    f"of {other:.0%} of its inputs the scales of another group fit, with which {left:.1%} of "
                    "the squared error is left"
                )
                self._findings.add(MISGROUPED, name, why)
                return True
        return False

    def finish(self, expected: Iterator[str]) -> None:
        """Once all are added: whose each is, and which of ``expected`` are not there."""
        for tensors in self._features.values():
            names = list(tensors)
            read, source = (np.stack([pair[side] for pair in tensors.values()]) for side in (0, 1))
            for i, j in identity.misplaced(read, source):
                if names[i] not in self._findings.about:
                    self._findings.add(ANOTHERS, names[i], f"is {names[j]} of its source")
        for name, why in self._unlike.items():
            if not any(about.startswith(name) for about in self._findings.about):
                self._findings.add(NO_LIKENESS, name, why)
        for name in expected:
            if name not in self.seen:
                self._findings.add("a tensor is missing", name, "its source has it")


def _slices(
    name: str, values: np.ndarray, source: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of experts in one tensor, each."""
    if values.ndim != 3 or len(values) == 1:
        yield name, values, source
        return
    for number, (mine, theirs) in enumerate(zip(values, source, strict=True)):
        yield f"{name}[{number}]", mine, theirs


def _residual(error: float, slope: float) -> float:
    """What is left, over the source's norm, once the source times ``slope`` is taken away: |x - s|^2 is
    |x - slope s|^2 + (slope - 1)^2 |s|^2."""
    return float(np.sqrt(max(0.0, error**2 - (slope - 1) ** 2)))
