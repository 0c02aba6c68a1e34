"""What steps of each kind took on this machine, so that the next plan can say from experience what they will
take.

One JSON line a finished step, in $QUANTWRIGHT_RATES (default: quantwright/rates.jsonl in $XDG_CACHE_HOME).
Nothing depends on it but the plan's estimates: it may be deleted at any time.
"""

import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

KEPT = 2000
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]

#: seconds before any work (imports), seconds per million weights: one slow core to two fast ones, for a
#: machine that has run nothing yet. Measured on two cores; a conversion has its method's own.
BUILT_IN: dict[str, tuple[float, float]] = {
    "eval": (15, 0.1),
    "bench": (15, 0.5),
    "report": (3, 0.0),
    "publish": (10, 0.0),
}
BUILT_IN_DEFAULT = (20.0, 5.0)
UNSURE = 3.0  # the range of a built-in rate: divided and multiplied by this
MARGIN = 2.0  # of a single measured one: what else the machine was doing then is not known
FAR = 50  # from so much smaller work nothing is concluded: what it took was mostly its start


@dataclass(frozen=True)
class Sample:
    """``work``: millions of weights for conversions and benchmarks; times thousands of tokens for
    evaluations."""

    kind: str
    work: Amount
    wall_s: Amount
    peak_rss_bytes: int
    threads: int


_SAMPLE = TypeAdapter(Sample)


@dataclass(frozen=True)
class Estimate:
    """Seconds from ``low`` to ``high``, and from what that is known."""

    low_s: float
    high_s: float
    source: str


def rates_file() -> Path:
    own = os.environ.get("QUANTWRIGHT_RATES")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else cache / "quantwright" / "rates.jsonl"


def read_samples() -> list[Sample]:
    samples = []
    try:
        lines = rates_file().read_text(encoding="utf-8").splitlines()[-KEPT:]
    except OSError:
        return []
    for line in lines:
        try:
            samples.append(_SAMPLE.validate_json(line))
        except ValueError:
            continue
    return samples


def add_sample(sample: Sample) -> None:
    """One write of one line: safe from several processes. A cache that cannot be written costs better
    estimates, no more."""
    try:
        rates_file().parent.mkdir(parents=True, exist_ok=True)
        with open(rates_file(), "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
    except OSError:
        pass


def estimate_seconds(
    kind: str, work: float, threads: int, samples: list[Sample], built_in: tuple[float, float] | None = None
) -> Estimate:
    """From earlier steps of the same kind, scaled by the work beyond start-up; else from built-in rates."""
    fixed, rate = built_in or BUILT_IN.get(kind.partition(":")[0], BUILT_IN_DEFAULT)
    mine = [s for s in samples if s.kind == kind and s.threads == threads] or [
        s for s in samples if s.kind == kind
    ]
    near = [s for s in mine if work < FAR * max(s.work, 1e-3)]
    if not near:
        guess = fixed + rate * work
        why = (
            f"all its records are over {FAR} times smaller"
            if mine
            else "this machine has no record of such a step"
        )
        return Estimate(guess / UNSURE, guess * UNSURE, f"built-in rates; {why}")
    # Nearest in size first: what a small model took says little about a large one.
    mine = sorted(near, key=lambda s: abs(_log(s.work) - _log(work)))[:9]
    start = min(fixed, *(s.wall_s for s in mine))
    scaled = [start + (s.wall_s - start) * max(work, 1e-3) / max(s.work, 1e-3) for s in mine]
    low, high = min(scaled), max(scaled)
    middle = statistics.median(scaled)
    source = f"{len(mine)} earlier step{'s' if len(mine) > 1 else ''} on this machine"
    return Estimate(min(low, middle / MARGIN), max(high, middle * MARGIN), source)


def _log(value: float) -> float:
    from math import log

    return log(max(value, 1e-6))
