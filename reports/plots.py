"""Which charts a report has, made from a comparison; and the same charts as SVG and PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantize.metrics import (
    KL_MAX,
    KL_MEAN,
    KL_PERCENTILES,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
    kl_percentile,
)
from quantize.packages import install_command
from reports.charts import Point, Scatter, Strip, StripChart, scatter, standalone, strips
from reports.format import change, heading, interval, number, unit
from reports.labels import Box, place_labels
from reports.rows import Group, Row, bounds, head
from reports.svg import STYLES

MOST_STRIPS = 40  # more lines than this make a chart unreadable; the table has them all
PROFILE = (*map(kl_percentile, KL_PERCENTILES), KL_MAX)
SCATTERS = (
    ("size", "Size against divergence", SIZE_BYTES, "Size on disk"),
    ("speed", "Decode speed against divergence", TG_TOKENS_PER_S, "Decode, tokens/s"),
    ("prefill", "Prefill speed against divergence", PP_TOKENS_PER_S, "Prefill, tokens/s"),
    ("memory", "Memory against divergence", PEAK_MEMORY_BYTES, "Peak memory of the process"),
)


def loss_title(group: Group) -> str:
    return "Mean KL divergence from the source, nats" if group.loss_metric == KL_MEAN else "Perplexity"


def scatter_plots(group: Group, ids: dict[int, str] | None = None) -> list[Scatter]:
    """Those for which at least two artifacts have both numbers. ``ids``: id(row) -> id of its line in the
    table."""
    plots = []
    floor = _floor(group)
    loss = loss_title(group)
    for key, title, metric, x_title in SCATTERS:
        points = tuple(
            p
            for row in group.rows
            if (p := _point(group, row, metric, (ids or {}).get(id(row), ""))) is not None
        )
        if len(points) < 2:
            continue
        if group.loss_metric != KL_MEAN:
            title = title.replace("divergence", PERPLEXITY)
        protocols = {row.cells[metric].protocol for row in group.rows if metric in row.cells}
        if len(protocols) == 1 and metric.endswith("tokens_per_s"):
            x_title += f" ({protocols.pop()})"
        better = "lower right is better" if metric.endswith("tokens_per_s") else "lower left is better"
        reference = (
            group.reference.value(metric) if group.reference and group.reference not in group.rows else None
        )
        plots.append(Scatter(key, title, metric, x_title, loss, better, points, floor, reference))
    return plots


def _floor(group: Group) -> float | None:
    values = [limits[1] for row in group.floors if (limits := bounds(row.cells.get(group.loss_metric)))]
    values += [v for row in group.floors if (v := row.value(group.loss_metric)) is not None]
    return max(values) if values and group.loss_metric == KL_MEAN else None


def _point(group: Group, row: Row, metric: str, row_id: str) -> Point | None:
    x, y = row.value(metric), row.value(group.loss_metric)
    if x is None or y is None:
        return None
    return Point(
        label=row.label,
        family=row.family,
        x=x,
        y=y,
        x_bounds=row.bounds(metric),
        y_bounds=row.bounds(group.loss_metric),
        front=metric in row.fronts,
        lines=tuple(_tooltip(row)),
        row=row_id,
    )


def _tooltip(row: Row) -> list[str]:
    out = []
    for metric in (
        SIZE_BYTES,
        KL_MEAN,
        PERPLEXITY,
        TOP1_AGREEMENT,
        TG_TOKENS_PER_S,
        PEAK_MEMORY_BYTES,
    ):
        value = row.value(metric)
        if value is not None:
            limits = row.bounds(metric)
            between = f" ({interval(metric, limits)})" if limits else ""
            out.append(f"{heading(metric)} {number(metric, value)} {unit(metric)}".rstrip() + between)
    if row.perplexity_change is not None:
        out.append(f"Perplexity {change(row.perplexity_change.value)} against the source")
    return out


def profile_chart(group: Group, ids: dict[int, str] | None = None) -> StripChart | None:
    """Percentiles of the divergence over tokens: how bad the bad tokens are."""
    rows = sorted((row for row in group.rows if row.value(KL_MEAN)), key=lambda row: row.value(KL_MEAN) or 0)
    found = []
    for row in rows[:MOST_STRIPS]:
        named = [("mean", row.value(KL_MEAN))] + [
            (metric.removeprefix("kl_"), row.value(metric)) for metric in PROFILE
        ]
        marks = tuple((name, value) for name, value in named if value is not None and value > 0)
        if len(marks) > 1:
            found.append(Strip(row.label, row.family, marks, None, (ids or {}).get(id(row), "")))
    names = tuple(dict.fromkeys(name for strip in found for name, _ in strip.marks))
    axis = "KL divergence per token, nats"
    return (
        StripChart("profile", "Divergence profile", KL_MEAN, axis, tuple(found), None, True, names)
        if found
        else None
    )


def task_charts(group: Group, ids: dict[int, str] | None = None) -> list[tuple[str, StripChart]]:
    """Per task: accuracy with its interval, artifacts in order, a line at the source's."""
    charts = []
    for index, task in enumerate(tasks_of(group)):
        found, reference = [], None
        for row in (
            *group.rows,
            *([group.reference] if group.reference and group.reference not in group.rows else []),
        ):
            if task not in row.tasks:
                continue
            result = head(row.tasks[task])
            if result.value is None:
                continue
            if row is group.reference:
                reference = result.value
            found.append(
                Strip(
                    row.label,
                    row.family,
                    ((heading(result.metric), result.value),),
                    bounds(result),
                    (ids or {}).get(id(row), ""),
                )
            )
        if found:
            metric = head(next(row.tasks[task] for row in group.all_rows if task in row.tasks)).metric
            chart = StripChart(
                f"task-{index}",
                f"{task}: {heading(metric).lower()}",
                metric,
                heading(metric),
                tuple(found[:MOST_STRIPS]),
                reference,
            )
            charts.append((task, chart))
    return charts


def tasks_of(group: Group) -> list[str]:
    return list(dict.fromkeys(task for row in group.all_rows for task in row.tasks))


def write_plots(group: Group, folder: Path, prefix: str = "") -> list[Path]:
    """Write every chart of ``group`` as an SVG file; the files in the order of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = scatter_plots(group)
    drawn = [(p.key, standalone(scatter(p))) for p in plots]
    if profile := profile_chart(group):
        drawn.append((profile.key, standalone(strips(profile))))
    drawn += [(chart.key, standalone(strips(chart))) for _, chart in task_charts(group)]
    files = []
    for key, svg in drawn:
        files.append(folder / f"{prefix}{key}.svg")
        files[-1].write_text(svg, encoding="utf-8")
    return files


def write_pngs(group: Group, folder: Path, prefix: str = "") -> tuple[list[Path], str]:
    """The scatter plots as PNG, for places that show no SVG. Returns (files, remark): without matplotlib
    none, and why."""
    plots = scatter_plots(group)
    try:
        figures = [_figure(plot) for plot in plots]
    except ImportError:
        return (
            [],
            "no PNG files: matplotlib is not installed "
            f"({install_command('plots')}); the SVG files show the same plots",
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot, figure in zip(plots, figures, strict=True):
        files.append(folder / f"{prefix}{plot.key}.png")
        figure.savefig(files[-1], metadata={"Software": None})
    return files, ""


#: of a repository: what draws its files
PLOTS = ("size-quality.png", "size-quality.svg")


def size_plot(group: Group) -> tuple[str, bytes]:
    """Name and contents of a picture of size against loss, as PNG, which any page shows, or as SVG where
    matplotlib is not installed; both empty where fewer than two artifacts have both numbers."""
    plot = next((plot for plot in scatter_plots(group) if plot.key == "size"), None)
    if plot is None:
        return "", b""
    drawn = io.BytesIO()
    try:
        figure = _figure(plot)
    except ImportError:
        return PLOTS[1], standalone(scatter(plot)).encode()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return PLOTS[0], drawn.getvalue()


def _figure(plot: Scatter) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.subplots(), plot)
    return figure


LABEL_POINTS = 8
_MATPLOTLIB_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "up": "^",
    "down": "v",
    "cross": "P",
    "hexagon": "h",
}


def _draw(axes: Any, plot: Scatter) -> None:
    scale = 1e6 if plot.x_metric.endswith("bytes") else 1.0
    for family in dict.fromkeys(p.family for p in plot.points):
        shape, colour, _ = STYLES.get(family, STYLES["other"])
        for p in (p for p in plot.points if p.family == family):
            spread = [[p.y - p.y_bounds[0]], [p.y_bounds[1] - p.y]] if p.y_bounds else None
            across = (
                [[(p.x - p.x_bounds[0]) / scale], [(p.x_bounds[1] - p.x) / scale]] if p.x_bounds else None
            )
            axes.errorbar(
                p.x / scale, p.y, yerr=spread, xerr=across, fmt=_MATPLOTLIB_MARKERS[shape], color=colour,
                elinewidth=1,
                markerfacecolor=colour if p.front else "white", label=family,
            )  # fmt: skip
    front = sorted((p.x / scale, p.y) for p in plot.points if p.front)
    axes.plot(*zip(*front, strict=True), linestyle="--", color="#667085", linewidth=1, zorder=0)
    if plot.floor is not None:
        axes.axhline(plot.floor, linestyle=":", color="#667085")
    positive = [p.y for p in plot.points if p.y > 0]
    if positive and max(positive) / min(positive) >= 5:
        axes.set_yscale("log")
    axes.set_xlabel(plot.x_title + (", MB" if scale != 1 else ""))
    axes.set_ylabel(plot.y_title)
    axes.set_title(f"{plot.title} ({plot.better})", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8, frameon=False)
    axes.grid(color="#e3e6eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, [(p.label, p.x / scale, p.y) for p in plot.points])


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Labels (text, x, y) where the SVG's rule puts them; y runs up here, down there."""
    axes.figure.draw_without_rendering()  # where the frame lies is known only now
    size = LABEL_POINTS / 72 * axes.figure.dpi
    at = [(x, -y) for x, y in axes.transData.transform([(x, y) for _, x, y in points])]
    frame, key = axes.get_window_extent(), axes.get_legend().get_window_extent()
    legend = Box(key.x0, -key.y1, key.x1, -key.y0)
    area = Box(frame.x0, -frame.y1, frame.x1, -frame.y0)
    for (text, *_), place in zip(
        points, place_labels(at, [text for text, *_ in points], area, size, [legend]), strict=True
    ):
        if place is not None:
            across = {"start": "left", "end": "right", "middle": "center"}[place.anchor]
            x, y = axes.transAxes.inverted().transform((place.x, -place.y))
            axes.text(
                x, y, text, ha=across, fontsize=LABEL_POINTS, transform=axes.transAxes, parse_math=False
            )
            if place.line:
                ends = axes.transAxes.inverted().transform(
                    [(px, -py) for px, py in (place.line[:2], place.line[2:])]
                )
                axes.plot(*zip(*ends, strict=True), transform=axes.transAxes, color="#667085", linewidth=0.6)
