"""What a comparison is made of: rows with their results side by side, groups of one model, and how a result
is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath

from quantize.artifact.artifact import grouped
from quantize.metrics import ACCURACY, ACCURACY_NORM, EXACT_MATCH, PASS_AT_1
from quantize.results import EvalResult, Subject
from reports.differences import Difference

TASK_METRICS = (ACCURACY, ACCURACY_NORM, EXACT_MATCH, PASS_AT_1)


@dataclass(frozen=True)
class Row:
    """One artifact. ``cells``: what compares across rows, by metric; ``tasks``: by task, then metric;
    ``others``: the rest."""

    subject: Subject
    label: str
    family: str
    cells: Mapping[str, EvalResult] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, EvalResult]] = field(default_factory=dict)
    others: tuple[EvalResult, ...] = ()
    failures: tuple[str, ...] = ()
    perplexity_change: Difference | None = None  # relative to the reference, paired: 0.01 is 1 % worse
    task_differences: Mapping[str, Difference] = field(default_factory=dict)
    within_noise: bool | None = None  # None: no floor to compare with
    noise_reason: str = ""
    fronts: tuple[str, ...] = ()  # the axes on whose Pareto front against divergence it lies

    def value(self, metric: str) -> float | None:
        if metric in ("size_bytes", "bits_per_weight") and getattr(self.subject, metric) is not None:
            return float(getattr(self.subject, metric))
        result = self.cells.get(metric)
        return None if result is None else result.value

    @property
    def notes(self) -> list[tuple[str, str, str]]:
        """(tensors, what, why) of its fallbacks, one for all tensors of which the same is said."""
        return grouped((note["tensor"], note["what"], note["why"]) for note in self.subject.notes)

    def bounds(self, metric: str) -> tuple[float, float] | None:
        return bounds(self.cells.get(metric))

    @property
    def task_accuracy(self) -> float | None:
        """Mean over tasks of each task's headline accuracy."""
        values = [head(metrics).value for metrics in self.tasks.values() if metrics]
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Inversion:
    """A metric by which the ``finer`` of two artifacts (labels) of one method is worse than the ``coarser``.
    ``difference``: finer minus coarser, paired, positive where worse; of perplexity relative."""

    metric: str
    task: str
    finer: str
    coarser: str
    difference: Difference


@dataclass(frozen=True)
class Group:
    """Everything about one source model: only within it do numbers compare."""

    model: str
    rows: tuple[Row, ...]  # artifacts, smallest first; then those without results
    reference: Row | None
    reference_why: str
    floors: tuple[Row, ...]
    loss_metric: str  # the loss in plots and on fronts: kl_mean, else perplexity
    warnings: tuple[str, ...] = ()
    inversions: tuple[Inversion, ...] = ()  # metrics that do not follow precision

    def flagged(self, metric: str, task: str = "") -> bool:
        return any((each.metric, each.task) == (metric, task) for each in self.inversions)

    @property
    def title(self) -> str:
        """For headings: of a folder only its name."""
        return PurePath(self.model).name if PurePath(self.model).is_absolute() else self.model

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.cells or row.tasks)

    @cached_property
    def all_rows(self) -> tuple[Row, ...]:
        """Artifacts, then the reference if it was not listed, then floors."""
        extra = (
            ()
            if self.reference is None or any(row is self.reference for row in self.rows)
            else (self.reference,)
        )
        return self.rows + extra + self.floors


def made(rows: Iterable[Row]) -> list[Row]:
    """Artifacts of which it is known what made them, and what that took; none where one engine made all."""
    known = [row for row in rows if row.subject.engine and row.subject.made_s is not None]
    return known if len({row.subject.engine for row in known}) > 1 else []


@dataclass(frozen=True)
class Comparison:
    groups: tuple[Group, ...]

    @cached_property
    def rows(self) -> list[tuple[Group, Row]]:
        return [(group, row) for group in self.groups for row in group.all_rows]


def bounds(result: EvalResult | None) -> tuple[float, float] | None:
    """The 95 % interval of a result: its own, else value ± 1.96 standard errors, else None."""
    if result is None or result.value is None:
        return None
    if result.interval is not None:
        return (float(result.interval[0]), float(result.interval[1]))
    if result.stderr is not None:
        return (result.value - 1.96 * result.stderr, result.value + 1.96 * result.stderr)
    return None


def head(metrics: Mapping[str, EvalResult]) -> EvalResult:
    """The one number that represents a task: plain accuracy where there is one."""
    return next((metrics[name] for name in TASK_METRICS if name in metrics), next(iter(metrics.values())))
