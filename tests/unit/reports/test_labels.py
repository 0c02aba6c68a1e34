"""Every point of a chart is named, however they crowd, and each name can be told to be its point's."""

from itertools import combinations

import numpy as np
import pytest

from reports.labels import CHARACTER_PX, MARKER_PX, Box, Label, place_labels

AREA = Box(58, 34, 538, 352)
#: Where the demo's artifacts lie in the size plot: five of them within 45 pixels.
DEMO = {
    "gguf-f32": (493, 352), "quanto-int8": (197, 218), "gguf-q8_0": (173, 194), "gguf-q5_k_m": (138, 114),
    "gguf-q4_k_m": (130, 80), "bnb-int8": (197, 189), "gptq-int4": (159, 86), "awq-int4": (158, 69),
    "bnb-nf4": (162, 64),
    "quanto-int4": (159, 59),
}  # fmt: skip


def box(label: Label, text: str) -> tuple[float, float, float, float]:
    width = len(text) * CHARACTER_PX
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return left, label.y - 9, left + width, label.y + 3


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


def on_line(label: Label, target: tuple[float, ...]) -> bool:
    if label.line is None:
        return False
    path = np.linspace(label.line[:2], label.line[2:], 200)
    return bool(((path > target[:2]) & (path < target[2:])).all(1).any())


def test_at_the_density_of_the_demo_every_name_stands_clear() -> None:
    texts, points = list(DEMO), list(DEMO.values())
    source = Box(265, 34, 305, 47)
    placed = place_labels(points, texts, AREA, avoid=[source])
    labels = [label for label in placed if label is not None]
    assert len(labels) == len(texts)
    boxes = [box(label, text) for label, text in zip(labels, texts, strict=True)]
    markers = [(x - MARKER_PX, y - MARKER_PX, x + MARKER_PX, y + MARKER_PX) for x, y in points]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    for own, label in enumerate(labels):
        assert not overlap(boxes[own], (source.left, source.top, source.right, source.bottom))
        others = [*boxes[:own], *boxes[own + 1 :], *markers[:own], *markers[own + 1 :]]
        assert not any(overlap(boxes[own], marker) for marker in markers[:own] + markers[own + 1 :])
        assert not any(on_line(label, other) for other in others)
        away = np.hypot(label.x - points[own][0], label.y - points[own][1])
        assert away < 25 or label.line is not None  # beside its point, or on a line to it
    assert sum(label.line is not None for label in labels) <= 3


@pytest.mark.parametrize("seed", range(8))
def test_a_cluster_of_twelve_is_named_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.uniform((150, 60), (230, 140), (12, 2))]
    texts = [f"recipe-{i}-q4_k_m" for i in range(12)]
    placed = place_labels(points, texts, AREA)
    assert all(placed)
    boxes = [box(label, text) for label, text in zip(placed, texts, strict=True) if label]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert placed == place_labels(points, texts, AREA)


def test_no_room_is_none() -> None:
    assert place_labels([(50, 50)], ["much too long for so small an area"], Box(0, 0, 100, 100)) == [None]
