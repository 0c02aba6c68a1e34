"""Labels of points that stay clear of one another: beside their point, or where that is crowded, further off
on a line to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHARACTER_PX = 7.2  # mean advance at 12 px of the widest of the usual system fonts (DejaVu Sans)
MARKER_PX = 7
#: (dx, dy, anchor) of a label's place beside its point, the best first
_BESIDE = (
    (9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 19, "middle"), (8, -8, "start"), (8, 16,
    "start"), (-8, -8, "end"),
    (-8, 16, "end"),
)  # fmt: skip
_RADII = (24, 32, 42, 54, 68, 84, 102, 124, 150, 180)
_DIRECTIONS = 24
MOST_LINES = 40  # points, beyond which there are only labels beside them: more lines than that are unreadable


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Label:
    """``anchor``: SVG's text-anchor. ``line``: (x1, y1, x2, y2) from the point to a label that does not lie
    beside it."""

    x: float
    y: float
    anchor: str
    line: tuple[float, float, float, float] | None = None


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    area: Box,
    size: float = 12,
    avoid: Sequence[Box] = (),
) -> list[Label | None]:
    """A place per label, in pixels, y down; None where there is no room in all of ``area``, or where more
    than ``MOST_LINES`` points leave none beside it.

    ``avoid``: other writing in the chart. Of several orders in which the labels may choose, the given one
    first, the one counts that takes the fewest and shortest lines.
    """
    across = sorted(range(len(points)), key=lambda i: points[i][0])
    down = sorted(range(len(points)), key=lambda i: points[i][1])
    best: tuple[float, list[Label | None]] | None = None
    for order in (list(range(len(points))), across, across[::-1], down, down[::-1])[
        : 5 if len(points) <= MOST_LINES else 1
    ]:
        found = _place(points, texts, area, size, avoid, order)
        if best is None or found[0] < best[0]:
            best = found
        if best[0] == 0:
            break
    assert best is not None
    return best[1]


def _place(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    area: Box,
    size: float,
    avoid: Sequence[Box],
    order: Sequence[int],
) -> tuple[float, list[Label | None]]:
    """(what it costs, a place per label); those earlier in ``order`` choose first."""
    fixed = [(box.left, box.top, box.right, box.bottom) for box in avoid]
    markers = [(x - MARKER_PX, y - MARKER_PX, x + MARKER_PX, y + MARKER_PX) for x, y in points]
    placed: list[Label | None] = [None] * len(points)
    written: list[tuple[float, ...]] = []
    lines: list[np.ndarray] = []
    total = 0.0
    for own in order:
        others = np.array([*fixed, *markers[:own], *markers[own + 1 :], *written], np.float64).reshape(-1, 4)
        width = len(texts[own]) * CHARACTER_PX * size / 12
        best: tuple[float, Label, tuple[float, ...], np.ndarray] | None = None
        for label, cost in _candidates(points[own], size, lines=len(points) <= MOST_LINES):
            if best is not None and best[0] <= cost:
                break
            left = label.x - (
                width if label.anchor == "end" else width / 2 if label.anchor == "middle" else 0
            )
            box = (left - 2, label.y - size * 0.85, left + width + 2, label.y + size * 0.3)
            if box[0] < area.left or box[2] > area.right or box[1] < area.top or box[3] > area.bottom:
                continue
            if _overlap(others, box) >= 2 or any(_inside(line, np.array([box])) for line in lines):
                continue
            path = _along(label.line)
            # A line through another's label, marker or line, or close by, misleads.
            cost += 60 * (
                _inside(path, others + np.array([-2, -2, 2, 2])) + sum(_touch(path, line) for line in lines)
            )
            if best is None or cost < best[0]:
                best = cost, label, box, path
        total += best[0] if best else 1000
        if best:
            placed[own] = best[1]
            written.append(best[2])
            lines.append(best[3])
    return total, placed


def _candidates(point: tuple[float, float], size: float, lines: bool) -> list[tuple[Label, float]]:
    """(place, what it costs), the cheapest first."""
    x, y = point
    out = [(Label(x + dx, y + dy, anchor), 0.0) for dx, dy, anchor in _BESIDE]
    for radius in _RADII if lines else ():
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            across, down = math.cos(angle), math.sin(angle)
            anchor = "start" if across > 0.3 else "end" if across < -0.3 else "middle"
            end = (x + radius * across, y + radius * down)
            start = (x + MARKER_PX * across, y + MARKER_PX * down)
            gap = 2 * (across > 0.3) - 2 * (across < -0.3)
            rise = size * (0.35 if anchor != "middle" else 0.9 if down > 0 else -0.35)
            out.append((Label(end[0] + gap, end[1] + rise, anchor, (*start, *end)), float(radius)))
    return out


def _overlap(others: np.ndarray, box: Sequence[float]) -> float:
    """Area in square pixels that ``box`` shares with boxes (n, 4)."""
    across = np.minimum(others[:, 2], box[2]) - np.maximum(others[:, 0], box[0])
    down = np.minimum(others[:, 3], box[3]) - np.maximum(others[:, 1], box[1])
    return float((np.maximum(across, 0) * np.maximum(down, 0)).sum())


def _along(line: tuple[float, float, float, float] | None) -> np.ndarray:
    """Points (n, 2) every other pixel of a line."""
    if line is None:
        return np.empty((0, 2))
    count = max(2, int(math.dist(line[:2], line[2:]) / 2))
    return np.linspace(line[:2], line[2:], count)


def _inside(path: np.ndarray, boxes: np.ndarray) -> int:
    """How many of the boxes (n, 4) the path runs through."""
    x, y = path[:, :1], path[:, 1:]
    return int(((x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])).any(0).sum())


def _touch(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two paths (n, 2) come within three pixels of one another."""
    if not len(one) or not len(other):
        return False
    return bool((np.abs(one[:, None] - other[None]).max(2) < 3).any())
