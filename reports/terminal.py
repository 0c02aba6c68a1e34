"""Tables and advice on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from quantize.metrics import (
    KL_MEAN,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
)
from quantize.terminal import console
from reports import format as text
from reports.markdown import limit_words
from reports.recommend import Advice, Candidate

if TYPE_CHECKING:
    from rich.console import Console

#: (key of a row, heading)
COLUMNS = (
    (SIZE_BYTES, "size"),
    ("bits_per_weight", "bits/w"),
    (PERPLEXITY, PERPLEXITY),
    (KL_MEAN, "KL, nats"),
    (TOP1_AGREEMENT, "top-1"),
    ("task_accuracy", "tasks"),
    (PP_TOKENS_PER_S, "prefill t/s"),
    (TG_TOKENS_PER_S, "decode t/s"),
    (PEAK_MEMORY_BYTES, "peak mem."),
)


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One line an artifact, numbers with half the width of their 95 % interval."""
    shown = [(key, title) for key, title in COLUMNS if any(row[key] is not None for row in rows)]
    several = len({row["model"] for row in rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in [*(["model"] if several else []), "recipe"]:
        table.add_column(title)
    for _, title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verified")
    for row in rows:
        role = escape(f" ({row['role']})") if row["role"] else ""
        name = [escape(row["model"])] if several else []
        state = (
            escape(row["verified"] or "–") if row["status"] == "ok" else f"[yellow]{escape(row['status'])}[/]"
        )
        table.add_row(*name, escape(row["label"]) + role, *(_cell(row, key) for key, _ in shown), state)
    out = console(markup=True)
    out.print(table)
    for row in rows:
        if row["reason"]:
            out.print(f"{row['label']}: {row['status']}: {row['reason']}", markup=False, highlight=False)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "–"
    interval = (row["uncertainty"].get(key) or {}).get("interval")
    shown = text.number(key, value)
    if interval is None or key.endswith("_bytes"):
        return shown
    half = (interval[1] - interval[0]) / 2
    return f"{shown} ±{f'{100 * half:.2f}' if key == TOP1_AGREEMENT else text.significant(half, 2)}"


def print_advice(advice: Advice, several: bool = False) -> None:
    """The answer, the arithmetic of what was chosen (or comes nearest), and in a line each why smaller ones
    were not."""
    out = console(markup=True)
    if several:
        out.print(f"[bold]{escape(advice.model)}[/]")
    if advice.chosen:
        out.print(
            f"{limit_words(advice.limits)}: [bold green]{escape(advice.chosen.row.label)}[/]", highlight=False
        )
        _checks(out, advice.chosen)
    elif advice.nearest:
        out.print(f"{limit_words(advice.limits)}: [bold red]none[/]", highlight=False)
        out.print(f"nearest: {escape(advice.nearest.row.label)}", highlight=False)
        _checks(out, advice.nearest)
    else:
        out.print("none: no measured artifact can be recommended")
    for candidate in advice.candidates:
        if candidate is advice.chosen:
            break
        if candidate is advice.nearest:
            continue
        why = "; ".join(check.arithmetic for check in candidate.missed)
        out.print(f"  not {candidate.row.label}: {why}", markup=False, highlight=False)


def _checks(out: "Console", candidate: Candidate) -> None:
    for check in candidate.checks:
        mark = "[green]✓[/]" if check.met else "[red]✗[/]"
        out.print(f"  {mark} {escape(check.name)}: {escape(check.arithmetic)}", highlight=False)


def print_changes(found: Sequence[dict[str, Any]], since: Path) -> None:
    out = console(markup=True)
    if not found:
        out.print(f"nothing changed since {since}", markup=False)
        return
    out.print(f"changed since {since}:", markup=False, highlight=False)
    for change in found:
        out.print(f"  {change['text']}", markup=False, highlight=False)
