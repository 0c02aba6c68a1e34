"""What changed between two reports: rows that came or went, numbers that moved beyond their uncertainty."""

from typing import Any

from quantize.metrics import (
    KL_MEAN,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
    TTFT_MS,
)
from reports import format as text
from reports.load import protocol_key
from reports.rows import Comparison, Group, Row

METRICS = (
    SIZE_BYTES, PERPLEXITY, KL_MEAN, TOP1_AGREEMENT, PP_TOKENS_PER_S, TG_TOKENS_PER_S, TTFT_MS,
    PEAK_MEMORY_BYTES
)  # fmt: skip


def changes(before: Comparison, after: Comparison) -> list[dict[str, Any]]:
    """One entry a change: ``kind`` (appeared, disappeared, status, number, protocol), ``model``,
    ``artifact``, ``text``.

    A number has changed when the two 95 % intervals do not overlap; without intervals, when the values
    differ.
    """
    old, new = _rows(before), _rows(after)
    out = [_entry("disappeared", key, f"{key[1]} was removed") for key in old if key not in new]
    for key, (_, row) in new.items():
        if key not in old:
            out.append(_entry("appeared", key, f"{key[1]} was added"))
            continue
        was = old[key][1]
        if was.subject.status != row.subject.status:
            reason = f": {row.subject.reason}" if row.subject.reason else ""
            out.append(
                _entry("status", key, f"{key[1]}: {was.subject.status} became {row.subject.status}{reason}")
            )
        for metric in METRICS:
            out += _number(key, was, row, metric)
    return out


def _rows(comparison: Comparison) -> dict[tuple[str, str], tuple[Group, Row]]:
    return {(group.model, row.label): (group, row) for group, row in comparison.rows}


def _number(key: tuple[str, str], was: Row, row: Row, metric: str) -> list[dict[str, Any]]:
    old, new = was.value(metric), row.value(metric)
    if old is None or new is None or old == new:
        return []
    first, second = was.cells.get(metric), row.cells.get(metric)
    if first is not None and second is not None and protocol_key(first) != protocol_key(second):
        words = (
            f"{key[1]}: {text.heading(metric)} was measured by {first.protocol}, now by "
            f"{second.protocol} or on other data"
        )
        return [_entry("protocol", key, words, metric=metric)]
    a, b = was.bounds(metric), row.bounds(metric)
    if a is not None and b is not None and a[0] <= b[1] and b[0] <= a[1]:
        return []
    better = text.METRICS.get(metric, ("", "", "", 0))[3] * (new - old)
    verdict = "better" if better > 0 else "worse"
    words = (
        f"{key[1]}: {text.heading(metric)} {text.number(metric, old)} "
        f"→ {text.number(metric, new)} ({verdict})"
    )
    return [_entry("number", key, words, metric=metric, before=old, after=new, verdict=verdict)]


def _entry(kind: str, key: tuple[str, str], words: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "model": key[0], "artifact": key[1], "text": words, **more}
