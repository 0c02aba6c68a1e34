"""A check of the metrics themselves: of files that one method made of one model, the one of more bits should
not measure worse. Where it does, beyond what chance explains, a runtime computes one of them wrongly, or the
metric does not follow quality here; either way nobody should choose by it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from quantize.metrics import KL_MEAN, PERPLEXITY
from quantize.results import EvalResult
from reports.differences import Difference, accuracy_change, adjust, mean_change, perplexity_change
from reports.format import change, heading, points, significant
from reports.rows import Inversion, Row, head

#: bits in a recipe's name or a file's: q4_k_m, iq4_xs, int4, nf4, fp4, mxfp4, float8, bf16
_BITS = re.compile(r"(?<![a-z])(?:i?q|tq|int|nf|fp|mxfp|nvfp|float|bfloat|bf|f|w)(\d+)(?!\d)")
_OPTION = re.compile(r"\b(?:bits|weights)=[a-z]*(\d+)")


def name_of(found: Inversion) -> str:
    return f"{heading(found.metric)}{f' of {found.task}' if found.task else ''}"


def _amount(found: Inversion) -> str:
    value = found.difference.value
    if found.task:
        return points(-value)
    return change(value) if found.metric == PERPLEXITY else f"+{significant(value, 2)}"


def bits_of(row: Row) -> int | None:
    """Bits of most of its weights, as its recipe or file name says; None where neither does. Sizes do not
    tell: Q4_1 takes more bits a weight than Q4_K_M, and is not finer."""
    for text in (row.subject.recipe.lower(), row.subject.name.lower()):
        if found := _OPTION.search(text) or _BITS.search(text):
            return int(found[1])
    return None


def inversions(rows: Sequence[Row]) -> tuple[Inversion, ...]:
    """Pairs in which the finer is worse: its 95 % interval lies above zero, and p, corrected for all pairs of
    its metric by Holm's method, below .05."""
    found = [
        *_inversions(rows, PERPLEXITY, "", perplexity_change),
        *_inversions(rows, KL_MEAN, "", mean_change),
    ]
    for task in dict.fromkeys(task for row in rows for task in row.tasks):
        metric = next(head(row.tasks[task]).metric for row in rows if task in row.tasks)
        found += _inversions(rows, metric, task, _errors)
    return tuple(found)


def _inversions(
    rows: Sequence[Row],
    metric: str,
    task: str,
    compare: Callable[[EvalResult, EvalResult], Difference | None],
) -> list[Inversion]:
    pairs = []
    for finer, coarser in _pairs(rows):
        mine, theirs = _result(finer, metric, task), _result(coarser, metric, task)
        if mine is None or theirs is None or (difference := compare(mine, theirs)) is None:
            continue
        pairs.append(Inversion(metric, task, finer.label, coarser.label, difference))
    corrected = adjust([pair.difference for pair in pairs])
    pairs = [replace(pair, difference=each) for pair, each in zip(pairs, corrected, strict=True)]
    return [
        pair
        for pair in pairs
        if pair.difference.interval is not None
        and pair.difference.interval[0] > 0
        and pair.difference.significant
    ]


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """(finer, coarser) of one method."""
    known = [(row, _method(row), bits) for row in rows if (bits := bits_of(row)) is not None]
    for finer, method, more in known:
        for coarser, other, fewer in known:
            if method == other and more > fewer:
                yield finer, coarser


def _method(row: Row) -> str:
    return row.family if row.family != "other" else re.split("[-:]", row.subject.recipe.lower())[0]


def _result(row: Row, metric: str, task: str) -> EvalResult | None:
    return row.tasks.get(task, {}).get(metric) if task else row.cells.get(metric)


def _errors(mine: EvalResult, theirs: EvalResult) -> Difference | None:
    """Of the share of items that are wrong. What was computed against the reference is of another pair."""
    detail = {key: value for key, value in mine.detail.items() if key != "vs_reference"}
    found = accuracy_change(replace(mine, detail=detail), theirs)
    if found is None:
        return None
    interval = (-found.interval[1], -found.interval[0]) if found.interval else None
    return replace(found, value=-found.value, interval=interval)


def warnings(found: Sequence[Inversion]) -> list[str]:
    """One sentence a metric, with the pair in which it shows most."""
    out = []
    for what in dict.fromkeys(map(name_of, found)):
        mine = [each for each in found if name_of(each) == what]
        worst = max(mine, key=lambda each: each.difference.value)
        others = f" (and in {len(mine) - 1} more)" if len(mine) > 1 else ""
        out.append(
            f"{what} is flagged: {worst.finer} measures worse than {worst.coarser} ({_amount(worst)}), which "
            f"has fewer bits, beyond the paired 95 % interval{others}. A runtime computes one of them "
            "wrongly, or this metric does not follow quality on this text: do not choose by it."
        )
    return out
