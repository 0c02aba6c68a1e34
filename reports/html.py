"""The report as one HTML page that works from a file, with no network: template, style and script are put
into it."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from quantize.checkpoint.kv_cache import KvShape
from quantize.metrics import (
    BITS_PER_BYTE,
    GPU_MEMORY_BYTES,
    KL_MEAN,
    KL_SAME_TOKENS,
    KL_WEIGHTS_ONLY,
    LOAD_MS,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
    TTFT_MS,
)
from quantize.results import EvalResult
from quantize.units import spell_size
from reports import format as text
from reports.charts import CHART_RULES, scatter, strips
from reports.commands_used import environments, reproduction
from reports.differences import Difference
from reports.generations import side_by_side
from reports.markdown import limit_words, task_title
from reports.memory import find_shapes, overhead
from reports.plots import profile_chart, scatter_plots, task_charts, tasks_of
from reports.recommend import Advice, Limits, recommend
from reports.rows import Comparison, Group, Row, bounds, head, made
from reports.svg import STYLES, css_class, marker

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_LOSS = 0.01  # "at most 1 % loss", by perplexity
DEFAULT_DIVERGENCE = 0.01


@dataclass(frozen=True)
class Column:
    """One column of the table. ``metric`` is what ``Row.value`` knows it by; protocol stands under its
    heading."""

    key: str
    title: str
    unit: str = ""
    protocol: str = ""
    better: int = 0


@dataclass(frozen=True)
class Cell:
    shown: str
    sort: float | str | None = None
    interval: str = ""
    hint: str = ""


def render(comparison: Comparison, runs: Iterable[Path], version: str, remarks: Iterable[str] = ()) -> str:
    """The whole page."""
    roots = [Path(), *runs]
    ids = {id(row): f"r{index}" for index, (_, row) in enumerate(comparison.rows)}
    sections = [_section(group, ids, roots, index) for index, group in enumerate(comparison.groups)]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    columns = _columns(comparison)
    page = _environment().get_template("report.html")
    return page.render(
        sections=sections,
        columns=columns,
        table=[
            _table_row(group, row, ids, columns, len(comparison.groups) > 1) for group, row in comparison.rows
        ],
        families=[f for f in STYLES if any(row.family == f for _, row in comparison.rows)],
        several=len(comparison.groups) > 1,
        style=Markup(_style()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environments=environments(comparison),
        reproduction=reproduction(comparison),
        failures=[
            (group, row) for group, row in comparison.rows if row.subject.status != "ok" or row.failures
        ],
        makings=[(group, made(group.rows)) for group in comparison.groups if made(group.rows)],
        noted=[(group, row) for group, row in comparison.rows if row.subject.notes],
        details=[
            (group, row, _all_results(row))
            for group, row in comparison.rows
            if row.cells or row.tasks or row.others
        ],
        runs=[str(run) for run in runs],
        version=version,
        remarks=list(remarks),
    )


@cache
def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "size": spell_size,
        "change": text.change,
        "points": text.points,
        "p_value": text.p_value,
        "css_class": css_class,
    }
    env.globals |= {
        "limit_words": limit_words,
        "number": text.number,
        "heading": text.heading,
        "unit": text.unit,
        "interval": text.interval,
        "marker": _legend_marker,
        "id": id,
    }
    return env


def _legend_marker(family: str, filled: bool = True) -> Markup:
    return Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(
        marker(family, filled)
    )


def _style() -> str:
    light = "".join(f".{css_class(name)}{{--c:{style[1]}}}" for name, style in STYLES.items())
    dark = "".join(
        f"[data-theme=dark] .{css_class(name)}{{--c:{style[2]}}}" for name, style in STYLES.items()
    )
    auto = "".join(
        f":root:not([data-theme=light]) .{css_class(name)}{{--c:{style[2]}}}"
        for name, style in STYLES.items()
    )
    rules = f"{CHART_RULES}{light}{dark}@media (prefers-color-scheme:dark){{{auto}}}"
    return (TEMPLATES / "report.css").read_text(encoding="utf-8") + rules


@dataclass(frozen=True)
class Section:
    """One model's answer and charts."""

    key: str
    group: Group
    advice: Advice
    families: list[str]
    charts: list[tuple[Any, Markup]]
    profile: Markup | None
    profile_names: tuple[str, ...]
    tasks: list[dict[str, Any]]
    generations: list[Any]
    buckets: list[dict[str, Any]]
    chooser: dict[str, Any]
    summary: dict[str, Any]


def _section(group: Group, ids: dict[int, str], roots: list[Path], index: int) -> Section:
    shapes = find_shapes(group, roots)
    limits = default_limits(group)
    profile = profile_chart(group, ids)
    return Section(
        key=f"m{index}",
        group=group,
        advice=recommend(group, limits, shapes),
        families=[f for f in STYLES if any(row.family == f for row in group.measured)],
        charts=[(plot, scatter(plot)) for plot in scatter_plots(group, ids)],
        profile=strips(profile) if profile else None,
        profile_names=profile.names if profile else (),
        tasks=_tasks(group, ids),
        generations=side_by_side(group),
        buckets=_buckets(group),
        chooser=_chooser(group, limits, ids, shapes),
        summary=_summary(group),
    )


def default_limits(group: Group) -> Limits:
    """At most 1 % loss: of perplexity where that is paired with the source's, else a mean divergence of 0.01
    nats."""
    if any(row.perplexity_change is not None and row.perplexity_change.interval for row in group.rows):
        return Limits(loss=DEFAULT_LOSS)
    return Limits(divergence=DEFAULT_DIVERGENCE)


def _summary(group: Group) -> dict[str, Any]:
    results = [r for row in group.all_rows for r in row.cells.values()]
    quality = [r for r in results if r.metric in (PERPLEXITY, KL_MEAN)]
    return {
        "artifacts": len(group.rows),
        "measured": len(group.measured),
        "protocols": sorted({r.protocol for r in quality}),
        "texts": sorted({str(r.environment["text"]) for r in quality if r.environment.get("text")}),
        "tokens": max((r.n for r in quality), default=0),
        "chunks": max((len(r.samples) for r in quality), default=0),
        "same_tokens": max((r.n for r in results if r.metric == KL_SAME_TOKENS), default=0),
        "backends": sorted({r.backend for r in results if r.backend}),
    }


def _chooser(
    group: Group, limits: Limits, ids: dict[int, str], shapes: dict[str, KvShape | None]
) -> dict[str, Any]:
    """What the page's script needs to answer again for other limits, by the same rule as ``recommend``."""
    rows = []
    for row in group.rows:
        if row.subject.status not in ("ok", "partial") or not row.subject.size_bytes:
            continue
        shape = shapes.get(row.label)
        rest, how = overhead(row, shape)
        speed = row.cells.get(TG_TOKENS_PER_S)
        kl, low = bounds(row.cells.get(KL_MEAN)), bounds(speed)
        change = row.perplexity_change
        rows.append(
            {
                "id": ids[id(row)],
                "label": row.label,
                "size": row.subject.size_bytes,
                "kl": kl[1] if kl else None,
                "loss": change.interval[1]
                if change and change.interval
                else 0
                if row is group.reference
                else None,
                "tg": low[0] if low and speed and not speed.detail.get("worthless") else None,
                "kv": [list(layer) for layer in shape.layers] if shape else None,
                "context": shape.context if shape else None,
                "overhead": rest,
                "how": how,
            }
        )
    context = max((shape.context or 0 for shape in shapes.values() if shape), default=0)
    return {"rows": rows, "loss": limits.loss, "divergence": limits.divergence, "context": context}


def _columns(comparison: Comparison) -> list[Column]:
    wanted = (
        SIZE_BYTES, "bits_per_weight", KL_MEAN, KL_WEIGHTS_ONLY, KL_SAME_TOKENS, PERPLEXITY,
        TOP1_AGREEMENT,
        BITS_PER_BYTE, PP_TOKENS_PER_S, TG_TOKENS_PER_S, TTFT_MS, LOAD_MS, PEAK_MEMORY_BYTES,
        GPU_MEMORY_BYTES,
    )  # fmt: skip
    out = []
    for metric in wanted:
        rows = [row for _, row in comparison.rows if row.value(metric) is not None]
        if not rows:
            continue
        protocols = {row.cells[metric].protocol for row in rows if metric in row.cells}
        protocol = protocols.pop() if len(protocols) == 1 else "several protocols" if protocols else ""
        better = text.METRICS.get(metric, ("", "", "", 0))[3]
        flagged = any(group.flagged(metric) for group in comparison.groups)
        title = text.heading(metric) + (" (flagged)" if flagged else "")
        out.append(Column(metric, title, text.unit(metric), protocol, better))
        if metric == PERPLEXITY and any(row.perplexity_change for row in rows):
            out.append(Column("perplexity_change", "Change", "vs source", "paired", -1))
    if any(row.task_accuracy is not None for _, row in comparison.rows):
        out.append(Column("task_accuracy", "Task accuracy", "", "mean over tasks", 1))
    return out


def _table_row(
    group: Group, row: Row, ids: dict[int, str], columns: list[Column], several: bool
) -> dict[str, Any]:
    return {
        "id": ids[id(row)],
        "row": row,
        "model": group.model if several else "",
        "role": row.subject.role or ("reference" if row is group.reference else ""),
        "cells": [_cell(row, column) for column in columns],
        "search": " ".join(
            (row.label, row.subject.name, row.family, group.model, row.subject.status)
        ).lower(),
    }


def _cell(row: Row, column: Column) -> Cell:
    if column.key == "perplexity_change":
        found = row.perplexity_change
        if found is None:
            return Cell("–")
        limits = (
            f"{text.change(found.interval[0])} to {text.change(found.interval[1])}" if found.interval else ""
        )
        return Cell(text.change(found.value), found.value, limits, difference_hint(found))
    if column.key == "task_accuracy":
        return Cell(text.number("task_accuracy", row.task_accuracy), row.task_accuracy)
    value = row.value(column.key)
    result = row.cells.get(column.key)
    return Cell(
        text.number(column.key, value),
        value,
        text.interval(column.key, row.bounds(column.key)),
        result_hint(result),
    )


def result_hint(result: EvalResult | None) -> str:
    """Protocol, backend, number and kind of samples: what a number rests on."""
    if result is None:
        return ""
    parts = [
        result.protocol,
        f"{result.ids} ids" if result.ids else "",
        result.backend,
        f"n = {result.n:,}" if result.n else "",
    ]
    if result.stderr is not None:
        parts.append(f"standard error {text.significant(result.stderr, 2)}")
    if result.excluded:
        parts.append(f"{result.excluded:,} excluded")
    return " · ".join(filter(None, parts))


def difference_hint(found: Difference) -> str:
    parts = [f"paired over {found.n}" if found.n else "paired"]
    if found.p_value is not None:
        parts.append(text.p_value(found.p_value))
    if found.holm is not None:
        parts.append(f"{text.p_value(found.holm)} after Holm's correction")
    return " · ".join(parts)


def _all_results(row: Row) -> list[dict[str, Any]]:
    results = [
        *row.cells.values(),
        *(r for metrics in row.tasks.values() for r in metrics.values()),
        *row.others,
    ]
    return [
        {"result": r, "bounds": bounds(r), "other": r in row.others}
        for r in results
        if r.metric != "generations"
    ]


def _tasks(group: Group, ids: dict[int, str]) -> list[dict[str, Any]]:
    charts = dict(task_charts(group, ids))
    out = []
    for task in tasks_of(group):
        rows = []
        for row in group.all_rows:
            if task in row.tasks:
                result = head(row.tasks[task])
                rows.append(
                    {
                        "row": row,
                        "result": result,
                        "bounds": bounds(result),
                        "change": row.task_differences.get(task),
                    }
                )
        chart = charts.get(task)
        protocol = head(next(row.tasks[task] for row in group.all_rows if task in row.tasks)).protocol
        out.append(
            {
                "task": task_title(group, task),
                "rows": rows,
                "chart": strips(chart) if chart else None,
                "protocol": protocol,
            }
        )
    return out


def _buckets(group: Group) -> list[dict[str, Any]]:
    """Divergence by how sure the reference was, where it was recorded; ``shade`` 0 to 1 for the cell's
    tint."""
    rows = []
    for row in group.rows:
        result = row.cells.get(KL_MEAN)
        if result is not None and result.detail.get("buckets"):
            rows.append({"row": row, "buckets": result.detail["buckets"]})
    return rows
