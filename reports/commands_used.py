"""Under what circumstances the numbers were made, and the commands that make them again."""

import json
from dataclasses import dataclass
from typing import Any

from quantize.metrics import KL_MEAN, PERPLEXITY, TG_TOKENS_PER_S
from quantize.results import EvalResult
from quantize.terminal import shell
from reports.rows import Comparison, Group, Row

#: Of the environment what changes from one moment to the next: the least and the greatest is shown.
MOMENTARY = ("load_average", "load_average_after", "frequency_mhz", "memory_available_bytes")
#: What names the data and the artifact, which stands elsewhere.
ELSEWHERE = ("reference", "reference_digest", "load_as")


@dataclass(frozen=True)
class Environment:
    """What some artifacts' results have in common."""

    title: str
    artifacts: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reproduction:
    title: str
    commands: tuple[str, ...]


def environments(comparison: Comparison) -> list[Environment]:
    """The distinct environments, each with the artifacts that were measured in it."""
    found: dict[tuple[tuple[str, str], ...], tuple[list[str], list[str]]] = {}
    for _, row in comparison.rows:
        for result in _results(row):
            facts = tuple(_facts(result))
            if facts:
                labels, kinds = found.setdefault(facts, ([], []))
                if row.label not in labels:
                    labels.append(row.label)
                kind = (
                    "speed and memory"
                    if result.metric.endswith(("per_s", "_ms", "_bytes"))
                    else "tasks"
                    if result.task
                    else "quality"
                )
                if kind not in kinds:
                    kinds.append(kind)
    return [
        Environment(", ".join(kinds).capitalize(), tuple(labels), facts)
        for facts, (labels, kinds) in found.items()
    ]


def _results(row: Row) -> list[EvalResult]:
    return [
        *row.cells.values(),
        *(r for metrics in row.tasks.values() for r in metrics.values()),
        *row.others,
    ]


def _facts(result: EvalResult) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in MOMENTARY and key not in ELSEWHERE:
                    add(f"{prefix} {key}".strip(), inner)
        elif value not in (None, ""):
            out.append(
                (
                    prefix.replace("_", " "),
                    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
                )
            )

    add("", result.environment)
    return out


def reproduction(comparison: Comparison) -> list[Reproduction]:
    """Per model: convert, eval, bench and report again. Paths are those that were typed."""
    return [Reproduction(group.model, tuple(_commands(group))) for group in comparison.groups]


def _commands(group: Group) -> list[str]:
    rows = [row for row in group.rows if row.subject.status in ("ok", "partial")]
    ours = [row for row in rows if row.subject.verified]
    commands = [
        _line("convert", row.subject.model, "--to", row.subject.recipe, "-o", row.subject.name)
        for row in ours
    ]
    quality = [r for row in rows for r in row.cells.values() if r.metric in (PERPLEXITY, KL_MEAN)]
    measured = [result for row in rows for metrics in row.tasks.values() for result in metrics.values()]
    tasks = list(dict.fromkeys(str(r.detail.get("typed") or r.task) for r in measured))
    names = [row.subject.name for row in rows if row.cells and not _load_as(row)]
    if quality or tasks:
        options: list[str] = []
        if group.reference and group.reference.subject.role == "reference":
            options += ["--reference", group.reference.subject.name]
        if quality:
            text = str(quality[0].environment.get("text", ""))
            options += ["--protocol", quality[0].protocol] + (
                ["--text", text] if text and not text.startswith("held-out") else []
            )
        options += ["--tasks", ",".join(tasks)] if tasks else []
        if names:
            commands.append(_line("eval", *names, *options, "-o", "RUN"))
        for row in rows:
            if load_as := _load_as(row):
                commands.append(_line("eval", row.subject.name, "--load-as", load_as, *options, "-o", "RUN"))
    if any(r.metric == TG_TOKENS_PER_S for row in rows for r in row.cells.values()):
        commands.append(
            _line("bench", *(row.subject.name for row in rows if row.cells.get(TG_TOKENS_PER_S)), "-o", "RUN")
        )
    return [*commands, _line("report", "RUN")]


def _load_as(row: Row) -> str:
    return next((str(r.environment["load_as"]) for r in _results(row) if r.environment.get("load_as")), "")


def _line(*words: str) -> str:
    return shell("quantwright", *(word for word in words if word))
