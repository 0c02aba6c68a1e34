"""What charts are drawn with: escaped SVG elements, nice ticks, markers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

#: family -> (marker, colour on light, colour on dark). Hues of Okabe and Ito's palette, which colour-blind
#: people can tell apart; the marker's shape says the same once more.
STYLES: dict[str, tuple[str, str, str]] = {
    "GGUF": ("circle", "#0072b2", "#56a8e0"),
    "GPTQ": ("square", "#c45100", "#f08a3c"),
    "AWQ": ("diamond", "#00805c", "#2fc496"),
    "quanto": ("up", "#a8518a", "#e08cc3"),
    "compressed-tensors": ("star", "#b02a45", "#f2758a"),
    "bitsandbytes": ("down", "#8a6d00", "#e0c040"),
    "torchao": ("right", "#5b55b8", "#a09bf0"),
    "unquantized": ("cross", "#5c6470", "#a5adba"),
    "other": ("hexagon", "#5c6470", "#a5adba"),
}
_MARKERS = {
    "circle": "M-5.2 0a5.2 5.2 0 1 0 10.4 0a5.2 5.2 0 1 0 -10.4 0z",
    "square": "M-4.7 -4.7h9.4v9.4h-9.4z",
    "diamond": "M0 -6.6L6.6 0L0 6.6L-6.6 0z",
    "up": "M0 -6.2L6 4.6H-6z",
    "down": "M0 6.2L6 -4.6H-6z",
    "right": "M6.2 0L-4.6 6V-6z",
    "star": "M0 -6.6L1.7 -2.3L6.3 -2L2.7 0.9L3.9 5.3L0 2.9L-3.9 5.3L-2.7 0.9L-6.3 -2L-1.7 -2.3z",
    "cross": "M-5.5 -2h3.5v-3.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5z",
    "hexagon": "M-5.6 0L-2.8 -5h5.6L5.6 0L2.8 5h-5.6z",
}


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """One SVG element. Attribute names: ``class_`` -> class, ``stroke_width`` -> stroke-width. All text is
    escaped."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>" if children else f"<{name}{written}/>")


def _short(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def css_class(family: str) -> str:
    return "f-" + family.lower() if family in STYLES else "f-other"


def marker(family: str, filled: bool = True, **attributes: Any) -> Markup:
    shape = STYLES.get(family, STYLES["other"])[0]
    return element(
        "path",
        d=_MARKERS[shape],
        class_=f"mark {css_class(family)} {'solid' if filled else 'hollow'}",
        **attributes,
    )


@dataclass(frozen=True)
class Scale:
    """Data -> pixels. ``reverse`` runs towards smaller pixels (the y axis)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def make_scale(
    values: Sequence[float],
    start: float,
    end: float,
    log: bool = False,
    zero: bool = False,
    pad: float = 0.08,
) -> Scale:
    """A scale that holds ``values`` with some air. ``log`` is dropped where they span less than a factor of
    5."""
    positive = [v for v in values if v > 0]
    if log and positive and max(positive) / min(positive) >= 5:
        low, high = min(positive), max(positive)
        air = (high / low) ** pad
        return Scale(low / air, high * air, start, end, True)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero or (low > 0 and low < 0.35 * high):
        low = min(0.0, low)
    span = (high - low) or abs(high) or 1.0
    return Scale(low if low == 0 else low - pad * span, high + pad * span, start, end)


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 2.2 else (1, 3) if decades < 3.2 else (1,)
    ticks = [
        float(f"{f}e{e}")
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for f in factors
    ]
    return [t for t in ticks if low <= t <= high]
