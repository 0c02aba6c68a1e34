"""Charts as SVG: a scatter of a cost against a loss, and strips of one number per artifact. Pure functions of
their data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from reports.format import number, unit
from reports.labels import CHARACTER_PX, Box, place_labels
from reports.svg import STYLES, Scale, css_class, element, make_scale, marker

WIDTH, HEIGHT = 540, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 48


@dataclass(frozen=True)
class Point:
    label: str
    family: str
    x: float
    y: float
    x_bounds: tuple[float, float] | None = None
    y_bounds: tuple[float, float] | None = None
    front: bool = False
    lines: tuple[str, ...] = ()  # of the tooltip
    row: str = ""  # id of the table row


@dataclass(frozen=True)
class Scatter:
    key: str
    title: str
    x_metric: str
    x_title: str
    y_title: str
    better: str
    points: tuple[Point, ...]
    floor: float | None = None
    reference_x: float | None = None


@dataclass(frozen=True)
class Strip:
    """One line of a strip chart: marks along a common axis, with an interval where there is one."""

    label: str
    family: str
    marks: tuple[tuple[str, float], ...]  # (name, value), the first is the main one
    bounds: tuple[float, float] | None = None
    row: str = ""


@dataclass(frozen=True)
class StripChart:
    key: str
    title: str
    metric: str
    axis: str
    strips: tuple[Strip, ...]
    reference: float | None = None
    log: bool = False
    names: tuple[str, ...] = field(default=())  # of the marks, for the legend


def scatter(plot: Scatter) -> Markup:
    """The chart as one <svg>; colours come from the style sheet's custom properties."""
    points = sorted(plot.points, key=lambda p: (not p.front, p.y))
    xs = [v for p in points for v in (p.x, *(p.x_bounds or ()))]
    if plot.reference_x is not None and plot.reference_x <= 1.7 * max(xs):
        xs.append(plot.reference_x)
    # An interval that reaches to (almost) nothing must not stretch a logarithmic axis: it is cut at the frame
    # instead. Nor must what equals the source but for rounding (1e-9 nats): it lies on the frame's lower
    # edge.
    smallest = max(min((p.y for p in points if p.y > 0), default=1.0), max(p.y for p in points) / 5000)
    ys = [max(p.y, smallest) for p in points] + [
        v for p in points for v in (p.y_bounds or ()) if v > smallest / 3
    ]
    if plot.floor is not None and plot.floor > smallest / 100:
        ys.append(plot.floor)
    x = make_scale(xs, LEFT, WIDTH - RIGHT)
    y = make_scale(ys, HEIGHT - BOTTOM, TOP, log=True)
    body = [*_axes(plot, x, y), *_guides(plot, x, y), _front(points, x, y)]
    body += [_error_bars(p, x, y) for p in points]
    at = [(x(p.x), y(p.y)) for p in points]
    area = Box(LEFT + 2, TOP, WIDTH - 2, HEIGHT - BOTTOM)
    labels = place_labels(at, [_clip(p.label) for p in points], area, avoid=_guide_boxes(plot, x, y))
    for p, label in zip(points, labels, strict=True):
        if label is not None and label.line is not None:
            x1, y1, x2, y2 = label.line
            body.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="leader", data_row=p.row))
    body += [_point(p, place, first=i == 0) for i, (p, place) in enumerate(zip(points, at, strict=True))]
    for p, label in zip(points, labels, strict=True):
        if label is not None:
            body.append(
                element(
                    "text",
                    _clip(p.label),
                    x=label.x,
                    y=label.y,
                    text_anchor=label.anchor,
                    class_="label",
                    data_row=p.row,
                )
            )
    return element(
        "svg", *body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart scatter", role="group",
        aria_label=f"{plot.title}: {len(points)} artifacts; {plot.better}", id=f"plot-{plot.key}",
    )  # fmt: skip


def _axes(plot: Scatter, x: Scale, y: Scale) -> list[Markup]:
    out = []
    for tick in x.ticks:
        out.append(element("line", x1=x(tick), x2=x(tick), y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"))
        text = tick_text(plot.x_metric, tick)
        out.append(
            element("text", text, x=x(tick), y=HEIGHT - BOTTOM + 17, text_anchor="middle", class_="tick")
        )
    for tick in y.ticks:
        out.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        out.append(
            element("text", log_text(tick), x=LEFT - 8, y=y(tick) + 4, text_anchor="end", class_="tick")
        )
    out.append(
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis")
    )
    out.append(
        element("text", plot.x_title, x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end", class_="axis-title")
    )
    out.append(element("text", plot.y_title, x=4, y=15, class_="axis-title"))
    return out


def log_text(value: float) -> str:
    """0.003 as it is, 3e-06 as 3·10⁻⁶."""
    if value == 0 or abs(value) >= 1e-4:
        return f"{value:g}"
    factor, _, exponent = f"{value:e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(factor) == 1 else f"{float(factor):g}·{power}"


def tick_text(metric: str, value: float) -> str:
    """``3 MB`` where a table would say ``3.00 MB``."""
    if value == 0:
        return "0"
    words = number(metric, value)
    figure, space, unit_name = words.partition(" ")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + space + unit_name


def _guides(plot: Scatter, x: Scale, y: Scale) -> list[Markup]:
    out = []
    if plot.floor is not None and y.low <= plot.floor <= y.high:
        at = y(plot.floor)
        out.append(
            element(
                "rect", x=LEFT, y=at, width=WIDTH - RIGHT - LEFT, height=HEIGHT - BOTTOM - at, class_="noise"
            )
        )
        out.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="floor"))
        out.append(
            element("text", "noise floor", x=WIDTH - RIGHT - 4, y=at - 5, text_anchor="end", class_="guide")
        )
    if plot.reference_x is not None and x.low <= plot.reference_x <= x.high:
        at = x(plot.reference_x)
        out.append(element("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="floor"))
        out.append(element("text", "source", x=at - 5, y=TOP + 10, text_anchor="end", class_="guide"))
    return out


def _guide_boxes(plot: Scatter, x: Scale, y: Scale) -> list[Box]:
    """Where ``_guides`` writes."""
    out = []
    right: float
    if plot.floor is not None and y.low <= plot.floor <= y.high:
        right, base = WIDTH - RIGHT - 4, y(plot.floor) - 5
        out.append(Box(right - 11 * CHARACTER_PX, base - 10, right, base + 3))
    if plot.reference_x is not None and x.low <= plot.reference_x <= x.high:
        right = x(plot.reference_x) - 5
        out.append(Box(right - 6 * CHARACTER_PX, TOP, right, TOP + 13))
    return out


def _front(points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    front = sorted((x(p.x), y(p.y)) for p in points if p.front)
    return element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in front), class_="front")


def _error_bars(p: Point, x: Scale, y: Scale) -> Markup:
    bars = []
    if p.y_bounds is not None:
        bars.append(element("line", x1=x(p.x), x2=x(p.x), y1=y(p.y_bounds[0]), y2=y(p.y_bounds[1])))
    if p.x_bounds is not None:
        bars.append(element("line", x1=x(p.x_bounds[0]), x2=x(p.x_bounds[1]), y1=y(p.y), y2=y(p.y)))
    return element("g", *bars, class_=f"bars {css_class(p.family)}", data_row=p.row) if bars else Markup("")


def _point(p: Point, place: tuple[float, float], first: bool) -> Markup:
    words = "; ".join((p.label, *p.lines, *(("on the Pareto front",) if p.front else ())))
    title, hit = element("title", "\n".join((p.label, *p.lines))), element("circle", r=13, class_="hit")
    return element(
        "g", title, hit, marker(p.family, filled=p.front), class_="point", role="img", aria_label=words,
        data_row=p.row,
        transform=f"translate({place[0]:.1f} {place[1]:.1f})",
        tabindex="0" if first else "-1",
    )  # fmt: skip


def _clip(text: str, length: int = 26) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


STRIP_HEIGHT, STRIP_LEFT = 26, 172


def strips(chart: StripChart) -> Markup:
    """A strip chart as one <svg>: artifacts down, one axis across."""
    values = [v for s in chart.strips for v in (*(value for _, value in s.marks), *(s.bounds or ()))]
    values += [] if chart.reference is None else [chart.reference]
    x = make_scale(values, STRIP_LEFT, WIDTH - 24, log=chart.log, pad=0.04)
    bottom = 10 + STRIP_HEIGHT * len(chart.strips)
    body = []
    for tick in x.ticks:
        body.append(element("line", x1=x(tick), x2=x(tick), y1=4, y2=bottom, class_="grid"))
        text = log_text(tick) if chart.log else tick_text(chart.metric, tick)
        body.append(element("text", text, x=x(tick), y=bottom + 16, text_anchor="middle", class_="tick"))
    if chart.reference is not None:
        at = x(chart.reference)
        body.append(element("line", x1=at, x2=at, y1=4, y2=bottom, class_="floor"))
    for index, strip in enumerate(chart.strips):
        body.append(_strip(chart, strip, x, 10 + STRIP_HEIGHT * (index + 0.5) - 2, first=index == 0))
    body.append(
        element("text", chart.axis, x=WIDTH - 24, y=bottom + 36, text_anchor="end", class_="axis-title")
    )
    return element(
        "svg", *body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {bottom + 44}",
        class_="chart strips",
        role="group", aria_label=chart.title, id=f"plot-{chart.key}",
    )  # fmt: skip


def _strip(chart: StripChart, strip: Strip, x: Scale, at: float, first: bool) -> Markup:
    low, high = min(v for _, v in strip.marks), max(v for _, v in strip.marks)
    parts = [
        element(
            "text", _clip(strip.label, 25), x=STRIP_LEFT - 12, y=at + 4, text_anchor="end", class_="label"
        )
    ]
    family = css_class(strip.family)
    if len(strip.marks) > 1:
        parts.append(element("line", x1=x(low), x2=x(high), y1=at, y2=at, class_=f"range {family}"))
        for _, value in strip.marks[1:]:
            parts.append(
                element("line", x1=x(value), x2=x(value), y1=at - 5, y2=at + 5, class_=f"tickmark {family}")
            )
    if strip.bounds is not None:
        parts.append(
            element(
                "line", x1=x(strip.bounds[0]), x2=x(strip.bounds[1]), y1=at, y2=at, class_=f"whisker {family}"
            )
        )
    parts.append(marker(strip.family, transform=f"translate({x(strip.marks[0][1]):.1f} {at:.1f})"))
    lines = [
        f"{name} {number(chart.metric, value)} {unit(chart.metric)}".strip() for name, value in strip.marks
    ]
    if strip.bounds is not None:
        lines.append(
            f"95 % interval {number(chart.metric, strip.bounds[0])} to "
            f"{number(chart.metric, strip.bounds[1])}"
        )
    hit = element("rect", x=0, y=at - STRIP_HEIGHT / 2, width=WIDTH, height=STRIP_HEIGHT, class_="hit")
    return element(
        "g", element("title", "\n".join((strip.label, *lines))), hit, *parts, class_="point strip",
        role="img",
        aria_label="; ".join((strip.label, *lines)), data_row=strip.row, tabindex="0" if first else "-1",
    )  # fmt: skip


#: For SVG files, which carry their own colours; the page's style sheet defines the same rules with its
#: theme's.
def standalone(svg: Markup) -> str:
    """The chart as a separate file, light or dark as the viewer prefers."""
    light = "".join(f".{css_class(name)}{{--c:{style[1]}}}" for name, style in STYLES.items())
    dark = "".join(f".{css_class(name)}{{--c:{style[2]}}}" for name, style in STYLES.items())
    rules = (
        "svg{--ink:#1d2430;--soft:#667085;--line:#e3e6eb;--paper:#fff;background:var(--paper);"
        "font-family:system-ui,sans-serif}"
        + light
        + "@media(prefers-color-scheme:dark)"
        + "{svg{--ink:#e8eaee;--soft:#9aa3b2;--line:#2c323d;--paper:#14171c}"
        + dark
        + "}"
        + CHART_RULES
    )
    opening, rest = str(svg).split(">", 1)
    return f"{opening}><style>{rules}</style>{rest}\n"


CHART_RULES = (
    ".grid{stroke:var(--line)}.axis{stroke:var(--soft)}.tick{fill:var(--soft);font-size:11px}.axis-title{fill:var(--soft);font-size:12px}"
    ".label{fill:var(--ink);font-size:12px;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}.guide{fill:var(--soft);font-size:11px;font-style:italic}"
    ".floor{stroke:var(--soft);stroke-dasharray:2 3}.noise{fill:var(--soft);opacity:.08}"
    ".leader{stroke:var(--soft);stroke-width:.9}"
    ".front{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4;opacity:.75}"
    ".bars line{stroke:var(--c);stroke-width:1.4;opacity:.55}.mark{stroke:var(--c);stroke-width:1.8}"
    ".solid{fill:var(--c)}.hollow{fill:var(--paper)}.hit{fill:transparent}"
    ".range{stroke:var(--c);stroke-width:2;opacity:.35}.tickmark{stroke:var(--c);stroke-width:2;opacity:.8}"
    ".whisker{stroke:var(--c);stroke-width:2.5;opacity:.5}"
)
