"""What one step costs, from what similar steps have taken on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.rates import Estimate, Sample, estimate_seconds


@dataclass(frozen=True)
class StepCost:
    """``size_bytes``: of the output; ``cache_bytes``: of what stays in RUN/cache; ``scratch_bytes``: on disk
    while it runs."""

    id: str
    kind: str
    size_bytes: int | None
    cache_bytes: int
    memory_bytes: int
    time: Estimate
    work: float
    rate_kind: str
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Experience:
    """``samples``: what earlier steps took, by ``rate_kind`` and work; ``threads``: that the steps get;
    ``available_bytes``: memory that they may use."""

    samples: Sequence[Sample]
    threads: int
    available_bytes: int

    def time(self, rate_kind: str, work: float, built_in: tuple[float, float] | None = None) -> Estimate:
        return estimate_seconds(rate_kind, work, self.threads, list(self.samples), built_in)

    def peak_bytes(self, rate_kind: str, work: float) -> int | None:
        """The most that earlier steps of this kind and size have held, and a little more."""
        near = [
            sample.peak_rss_bytes
            for sample in self.samples
            if sample.kind == rate_kind and 0.8 < work / max(sample.work, 1e-3) < 1.25
        ]
        return int(1.05 * max(near)) if near else None
