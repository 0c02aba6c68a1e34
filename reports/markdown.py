"""The comparison in Markdown: what GitHub and a model card show. Charts are linked where their files lie
beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from quantize.metrics import (
    KL_MEAN,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
)
from quantize.terminal import printable
from quantize.units import spell_size
from reports import format as text
from reports.commands_used import reproduction
from reports.format import change, number, p_value, points
from reports.plots import tasks_of
from reports.recommend import Advice, Limits
from reports.rows import Comparison, Group, Row, bounds, head, made

COLUMNS = (
    SIZE_BYTES,
    "bits_per_weight",
    KL_MEAN,
    PERPLEXITY,
    TOP1_AGREEMENT,
    TG_TOKENS_PER_S,
    PP_TOKENS_PER_S,
    PEAK_MEMORY_BYTES,
)


def escape(words: object) -> str:
    """One line of text: no markup, no HTML, no address that becomes a link, no cell border, no secret."""
    out = (
        printable(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\\", "\\\\")
    )
    for character in "|*_`[]~":
        out = out.replace(character, "\\" + character)
    # what begins a heading, a list, a rule
    out = re.sub(r"^(#*|[-+=]*|\d+)([#.)+=-])(?=\s|$)", r"\1\\\2", " ".join(out.split()))
    return out.replace("://", "&#58;//").replace("www.", "www&#46;")


def code(words: object) -> str:
    """In backticks, whatever it holds; inside a table a bar still has to be escaped."""
    plain = " ".join(printable(words).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def limit_words(limits: Limits) -> str:
    """The limits as the beginning of a sentence: ``For 8.59 GB and at most 1 % loss``."""
    first = [f"For {spell_size(limits.memory_bytes)}"] if limits.memory_bytes is not None else []
    parts = []
    if limits.context:
        parts.append(f"{limits.context:,} tokens of context")
    if limits.loss is not None:
        parts.append(f"at most {100 * limits.loss:g} % loss (perplexity)")
    if limits.divergence is not None:
        parts.append(f"at most {limits.divergence:g} nats of divergence")
    if limits.accuracy_drop is not None:
        parts.append(f"at most {100 * limits.accuracy_drop:g} points of accuracy lost")
    if limits.tokens_per_second is not None:
        parts.append(f"at least {limits.tokens_per_second:g} tokens/s")
    if limits.runtime:
        parts.append(f"in {limits.runtime}")
    sentence = ", ".join([*first, *parts]) or "Without any limit"
    return sentence if sentence.startswith(("For", "Without")) else "For " + sentence


def report_markdown(
    comparison: Comparison, advice: Sequence[Advice], plots: Sequence[Sequence[str]], version: str
) -> str:
    """``plots``: per model the chart files to link, relative to the Markdown file."""
    out = ["# Quantization report", ""]
    for group, found, files in zip(comparison.groups, advice, plots, strict=True):
        out += [f"## {escape(group.title)}", "", answer(found), ""]
        out += [*table(group), "", *footnotes(group), ""]
        for file in files:
            out += [f"![{escape(file.rpartition('/')[2].rpartition('.')[0])}]({file})", ""]
        out += task_tables(group)
        out += makings(group)
        failed = [row for row in group.all_rows if row.subject.status != "ok" or row.failures]
        if failed:
            out += ["### Failures", ""]
            out += [
                f"- {code(row.label)} ({escape(row.subject.status)}): "
                f"{escape('; '.join(row.failures) or row.subject.reason)}"
                for row in failed
            ]
            out.append("")
        noted = [(row.label, *note) for row in group.all_rows for note in row.notes]
        if noted:
            out += ["### Fallbacks and notes", "", *(note_line(*each) for each in noted), ""]
    out += ["## Reproduction", "", "```sh"]
    out += [command for part in reproduction(comparison) for command in part.commands]
    return "\n".join([*out, "```", "", f"Written by Quantwright {version}.", ""])


def note_line(label: str, tensors: str, what: str, why: str) -> str:
    return f"- {code(label)}: {code(tensors)} {escape(what)}: {escape(why)}"


def answer(advice: Advice) -> str:
    if advice.chosen:
        why = "; ".join(check.arithmetic for check in advice.chosen.checks)
        return (
            f"**{limit_words(advice.limits)}: {code(advice.chosen.row.label)}.** "
            f"The smallest within these limits: {escape(why)}."
        )
    if advice.nearest:
        why = "; ".join(check.arithmetic for check in advice.nearest.missed)
        return (
            f"**{limit_words(advice.limits)}: none.** "
            f"{code(advice.nearest.row.label)} comes nearest: {escape(why)}."
        )
    return "**No measured artifact can be recommended.**"


def table(group: Group) -> list[str]:
    columns = [c for c in COLUMNS if any(row.value(c) is not None for row in group.all_rows)]
    titles = []
    for column in columns:
        protocols = {row.cells[column].protocol for row in group.all_rows if column in row.cells}
        protocol = f" ({protocols.pop()})" if len(protocols) == 1 else ""
        flag = " (flagged)" if group.flagged(column) else ""
        titles.append(
            f"{text.heading(column)}{flag}{', ' + text.unit(column) if text.unit(column) else ''}{protocol}"
        )
        if column == PERPLEXITY:
            titles.append("Change")
    lines = [
        "| Artifact | " + " | ".join(escape(t) for t in titles) + " | Verified |",
        "|---|" + "---:|" * len(titles) + "---|",
    ]
    for row in group.all_rows:
        cells = []
        for column in columns:
            cells.append(with_interval(row, column))
            if column == PERPLEXITY:
                cells.append(_change(row))
        state = (
            escape(row.subject.verified or "–")
            if row.subject.status == "ok"
            else f"**{escape(row.subject.status)}**"
        )
        mark = " (source)" if row is group.reference else " (floor)" if row.subject.role == "floor" else ""
        lines.append(f"| {code(row.label)}{mark} | " + " | ".join(cells) + f" | {state} |")
    return lines


def with_interval(row: Row, metric: str) -> str:
    value = number(metric, row.value(metric))
    limits = row.bounds(metric)
    return f"{value} ({text.interval(metric, limits)})" if limits else value


def _change(row: Row) -> str:
    found = row.perplexity_change
    if found is None:
        return "–"
    return change(found.value) + (
        f" ({change(found.interval[0])} to {change(found.interval[1])})" if found.interval else ""
    )


def footnotes(group: Group) -> list[str]:
    """What the numbers rest on: protocol, text, tokens, backends, warnings."""
    results = [r for row in group.all_rows for r in row.cells.values()]
    quality = [r for r in results if r.metric in (PERPLEXITY, KL_MEAN)]
    out = [
        "In brackets: 95 % intervals. "
        + f"Reference: {code(group.reference.label) if group.reference else 'none'}, "
        f"{escape(group.reference_why)}."
    ]
    if quality:
        # The file's name alone: this goes into model cards, and the path on somebody's disk is private.
        texts = ", ".join(sorted({Path(str(r.environment.get("text", ""))).name for r in quality} - {""}))
        ids = " and ".join(sorted({r.ids for r in quality} - {""}))
        out.append(
            f"Quality: {escape(', '.join(sorted({r.protocol for r in quality})))} on "
            f"{max(r.n for r in quality):,} tokens"
            + (f" of {escape(texts)}" if texts else "") + (f", {escape(ids)} token ids" if ids else "") + "."
        )  # fmt: skip
    floors = {row.cells[KL_MEAN].n for row in group.floors if KL_MEAN in row.cells}
    if floors:
        out.append(
            f"Floors: on {' or '.join(f'{n:,}' for n in sorted(floors))} of them, spread over the text."
        )
    backends = sorted({r.backend for r in results} - {""})
    if backends:
        out.append(f"Measured in {escape(', '.join(backends))}.")
    return [" ".join(out), *(f"\n> {escape(warning)}" for warning in group.warnings)]


def makings(group: Group) -> list[str]:
    rows = made(group.rows)
    if not rows:
        return []
    lines = [
        f"| {code(row.label)} | {escape(row.subject.engine)} | {with_interval(row, group.loss_metric)} | "
        f"{_change(row)} | {row.subject.made_s:,.0f} | {spell_size(row.subject.made_peak_bytes or 0)} |"
        for row in rows
    ]
    loss = text.heading(group.loss_metric)
    return [
        "### Engines",
        "",
        f"| Artifact | Made by | {loss} | Perplexity, change | Seconds | Peak memory |",
        "|---|---|---:|---:|---:|---:|",
        *lines,
        "",
        "Seconds of the whole conversion, verification in it, and the most that one of its processes held.",
        "",
    ]


def task_title(group: Group, task: str) -> str:
    flagged = any(task == each.task for each in group.inversions)
    return f"{task} (flagged)" if flagged else task


def task_tables(group: Group) -> list[str]:
    tasks = tasks_of(group)
    if not tasks:
        return []
    out = [
        "### Tasks",
        "",
        "| Artifact | " + " | ".join(escape(task_title(group, task)) for task in tasks) + " |",
        "|---|" + "---:|" * len(tasks),
    ]
    for row in group.all_rows:
        if not row.tasks:
            continue
        cells = []
        for task in tasks:
            if task not in row.tasks:
                cells.append("–")
                continue
            result = head(row.tasks[task])
            cell = number(result.metric, result.value)
            if limits := bounds(result):
                cell += f" ({text.interval(result.metric, limits)})"
            if difference := row.task_differences.get(task):
                p = difference.holm if difference.holm is not None else difference.p_value
                cell += f", {points(difference.value)}" + (f", {p_value(p)}" if p is not None else "")
            cells.append(cell)
        out.append(f"| {code(row.label)} | " + " | ".join(cells) + " |")
    counts = {
        task: max(head(row.tasks[task]).n for row in group.all_rows if task in row.tasks) for task in tasks
    }
    items = ", ".join(f"{escape(task)} {count:,}" for task, count in counts.items())
    return [
        *out,
        "",
        f"Items: {items}. Differences are paired with the source; p by exact McNemar's test, Holm-corrected.",
        "",
    ]
