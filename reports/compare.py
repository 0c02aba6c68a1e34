"""Results -> a comparison: rows, reference, paired differences, what lies within noise, Pareto fronts. Pure
functions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantize.dtypes import DENSE
from quantize.metrics import (
    KL_MEAN,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    PPL_RATIO,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
)
from quantize.results import EvalResult, Subject
from reports.differences import accuracy_change, adjust, measured_change, perplexity_change
from reports.format import heading
from reports.inversions import inversions
from reports.inversions import warnings as inversion_warnings
from reports.load import DATA_KEYS, Entry, protocol_key
from reports.rows import TASK_METRICS, Comparison, Group, Row, bounds, head

#: (plot axis, whether smaller is better)
AXES = {SIZE_BYTES: True, TG_TOKENS_PER_S: False, PP_TOKENS_PER_S: False, PEAK_MEMORY_BYTES: True}
FAMILIES = (
    ("ct-", "compressed-tensors"), ("compressed-tensors", "compressed-tensors"), ("gguf", "GGUF"),
    ("gptq", "GPTQ"), ("awq", "AWQ"), ("quanto", "quanto"), ("bnb", "bitsandbytes"),
    ("torchao", "torchao"),
)  # fmt: skip
UNQUANTIZED = (*DENSE, "dense", "reference", "source")


def family(subject: Subject) -> str:
    """Which method made it, from its recipe or file name."""
    name, name_of_file = subject.recipe.lower(), subject.name.lower()
    for prefix, title in FAMILIES:
        if (
            name.startswith(prefix)
            or f"-{prefix}" in name
            or (prefix == "gguf" and ".gguf" in (name[-5:], name_of_file[-5:]))
        ):
            return title
    return "unquantized" if name.startswith(UNQUANTIZED) or subject.role == "reference" else "other"


def compare(entries: Sequence[Entry]) -> Comparison:
    """Group by source model, choose the protocol that most rows share, pair every row with the reference."""
    return Comparison(tuple(_group(model, members) for model, members in _by_model(entries)))


def _by_model(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """Entries that share a source, as their manifests name it or as the reference they were measured
    against."""
    home: dict[str, str] = {}

    def find(name: str) -> str:
        while home.setdefault(name, name) != name:
            name = home[name]
        return name

    keys = []
    for entry in entries:
        subject = entry.subject
        names = [subject.model or subject.name]
        if subject.role == "reference":
            names.insert(0, subject.name)
        for result in entry.results:
            names += [
                str(result.environment[k])
                for k in ("reference", "reference_digest")
                if result.environment.get(k)
            ]
        if subject.role == "reference" and subject.digest:
            names.append(subject.digest)
        names = list(dict.fromkeys(names))
        for name in names[1:]:
            home[find(name)] = find(names[0])
        keys.append(names[0])
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry, key in zip(entries, keys, strict=True):
        groups[find(key)].append(entry)
    return [(_model_name(members), members) for members in groups.values()]


def _model_name(entries: Sequence[Entry]) -> str:
    """The reference's name, else the source that most artifacts name."""
    for entry in entries:
        if entry.subject.role == "reference":
            return entry.subject.name
    for entry in entries:
        for result in entry.results:
            if result.environment.get("reference"):
                return str(result.environment["reference"])
    return Counter(entry.subject.model or entry.subject.name for entry in entries).most_common(1)[0][0]


def _group(model: str, entries: list[Entry]) -> Group:
    chosen, warnings = _choose_protocols(entries)
    labels = _labels([entry.subject for entry in entries])
    rows = [_row(entry, label, chosen) for entry, label in zip(entries, labels, strict=True)]
    floors = tuple(row for row in rows if row.subject.role == "floor")
    candidates = [row for row in rows if row.subject.role != "floor"]
    reference, why = _reference(candidates)
    rows = [row for row in candidates if row is not reference or row.subject.role != "reference"]
    if reference is not None:
        paired = [_pair(row, reference) if row is not reference else row for row in rows]
        rows = _holm(paired)
    rows = [_noise(row, floors, reference) for row in rows]
    loss = next((m for m in (KL_MEAN, PERPLEXITY) if any(row.value(m) is not None for row in rows)), KL_MEAN)
    rows = _fronts(rows, loss)
    rows.sort(key=lambda row: (not (row.cells or row.tasks), row.subject.size_bytes or 0, row.label))
    # it may have changed since: keep identity
    if reference is not None and reference.subject.role != "reference":
        reference = next(row for row in rows if row.subject == reference.subject)
    flagged = inversions(rows)
    warnings += [*inversion_warnings(flagged), *_warnings(rows), *_remarks((*rows, *floors))]
    if loss == KL_MEAN and not floors and any(row.value(loss) is not None for row in rows):
        warnings.append(
            "No floor rows were measured, so this report cannot say which divergence is only noise."
        )
    return Group(model, tuple(rows), reference, why, floors, loss, tuple(warnings), flagged)


def _choose_protocols(entries: list[Entry]) -> tuple[dict[tuple[str, str], tuple[Any, ...]], list[str]]:
    """(metric, task) -> the key of the protocol that most entries share (of equals the shorter name), and a
    warning for each metric that some entry has in other ways only."""
    counts: dict[tuple[str, str], Counter[tuple[Any, ...]]] = defaultdict(Counter)
    names: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        voting = [r for r in entry.results if r.value is not None and r.role != "floor"]
        for key, result in {protocol_key(r): r for r in voting}.items():
            counts[result.metric, result.task][key] += 1
            names[key] = result.protocol
    chosen, warnings = {}, []
    for (metric, task), counter in counts.items():
        best = max(counter, key=lambda key: (counter[key], -len(names[key])))
        chosen[metric, task] = best
        left_out = [
            entry.subject.recipe
            for entry in entries
            if (
                mine := [
                    r for r in entry.results if (r.metric, r.task, r.value is None) == (metric, task, False)
                ]
            )
            and not any(_fits(r, best) for r in mine)
        ]
        if left_out and metric in (
            PERPLEXITY,
            KL_MEAN,
            TG_TOKENS_PER_S,
            PP_TOKENS_PER_S,
            *TASK_METRICS,
        ):
            warnings.append(
                f"{heading(metric)}{f' of {task}' if task else ''} of {', '.join(left_out)} "
                "was measured on other data or by another protocol than the others "
                f"({names[best]}), so it is not in the table; see “All results”"
            )
    return chosen, warnings


def _fits(result: EvalResult, key: tuple[Any, ...] | None) -> bool:
    """Whether the result may stand under ``key``; a floor's is of a part of the same text (evals.floors)."""
    own = protocol_key(result)
    if key is None or result.role != "floor":
        return own == key
    ids = DATA_KEYS.index("ids_sha256")
    return own[:-1] == key[:-1] and all(
        a == b for i, (a, b) in enumerate(zip(own[-1], key[-1], strict=True)) if i != ids
    )


def _row(entry: Entry, label: str, chosen: Mapping[tuple[str, str], tuple[Any, ...]]) -> Row:
    cells: dict[str, EvalResult] = {}
    tasks: dict[str, dict[str, EvalResult]] = defaultdict(dict)
    others = []
    for result in entry.results:
        if result.value is None or not _fits(result, chosen.get((result.metric, result.task))):
            others.append(result)
        elif result.task:
            tasks[result.task][result.metric] = result
        elif result.metric in cells:
            others.append(result)
        else:
            cells[result.metric] = result
    return Row(entry.subject, label, family(entry.subject), cells, dict(tasks), tuple(others), entry.failures)


def _labels(subjects: Sequence[Subject]) -> list[str]:
    """The recipe, with as much of the path as tells two with the same recipe apart."""
    plain = [subject.recipe or subject.name for subject in subjects]
    counts = Counter(plain)
    return [
        p if counts[p] == 1 else f"{p} ({s.name})" if s.name != p else p
        for p, s in zip(plain, subjects, strict=True)
    ]


def _reference(rows: Sequence[Row]) -> tuple[Row | None, str]:
    for row in rows:
        if row.subject.role == "reference":
            return row, "the source checkpoint, named as reference"
    for row in rows:
        found = next((result for result in row.cells.values() if result.role == "reference"), None)
        if found is not None:
            return row, str(found.environment.get("reference_why", "named as reference when it was measured"))
    measured = [row for row in rows if row.cells and row.subject.size_bytes]
    if not measured:
        return None, "no measured model can serve as reference"
    largest = max(measured, key=lambda row: row.subject.size_bytes or 0)
    return largest, "no source was named, so the largest artifact is used; losses are relative to it"


def _pair(row: Row, reference: Row) -> Row:
    differences = {}
    for task, metrics in row.tasks.items():
        theirs = reference.tasks.get(task, {})
        mine = head(metrics)
        if mine.metric in theirs and (difference := accuracy_change(mine, theirs[mine.metric])):
            differences[task] = difference
    change = None
    if PPL_RATIO in row.cells and PERPLEXITY in row.cells:
        change = measured_change(row.cells[PPL_RATIO])
    elif PERPLEXITY in row.cells and PERPLEXITY in reference.cells:
        change = perplexity_change(row.cells[PERPLEXITY], reference.cells[PERPLEXITY])
    return replace(row, perplexity_change=change, task_differences=differences)


def _holm(rows: list[Row]) -> list[Row]:
    """p-values of all rows on one thing, corrected for their number."""
    have = [i for i, row in enumerate(rows) if row.perplexity_change is not None]
    for i, change in zip(
        have, adjust([c for row in rows if (c := row.perplexity_change) is not None]), strict=True
    ):
        rows[i] = replace(rows[i], perplexity_change=change)
    for task in {task for row in rows for task in row.task_differences}:
        have = [i for i, row in enumerate(rows) if task in row.task_differences]
        for i, difference in zip(have, adjust([rows[i].task_differences[task] for i in have]), strict=True):
            rows[i] = replace(rows[i], task_differences={**rows[i].task_differences, task: difference})
    return rows


def _noise(row: Row, floors: Sequence[Row], reference: Row | None) -> Row:
    """Within noise: its mean divergence is not larger, by their intervals, than a floor's.

    Floors count that were measured in the reference's own runtime (the source again, rounded otherwise), and
    in the row's (the unquantized model there).
    """
    mine = row.cells.get(KL_MEAN)
    if mine is None or mine.value is None:
        return row
    home = [r.backend for r in reference.cells.values()] if reference is not None else []
    counting = {backend_name(name) for name in (mine.backend, *home[:1], "")}
    usable = []
    for floor in (*floors, *([reference] if reference is not None else [])):
        result = floor.cells.get(KL_MEAN)
        if result is not None and result.value is not None and backend_name(result.backend) in counting:
            limits = bounds(result)
            usable.append((limits[1] if limits else result.value, floor.label))
    if not usable:
        return row
    limit, name = max(usable)
    limits = bounds(mine)
    low = limits[0] if limits else mine.value
    within = low <= limit
    relation = "not above" if within else "above"
    return replace(
        row,
        within_noise=within,
        noise_reason=f"lower end {low:.3g} is {relation} the floor “{name}” ({limit:.3g})",
    )


def backend_name(text: str) -> str:
    """Which program a backend's description names: ``llama.cpp b123 (AVX2)`` and ``llamacpp`` are the
    same."""
    letters = "".join(c for c in text.lower() if c.isalnum())
    return next((name for name in ("llamacpp", "transformers", "vllm") if letters.startswith(name)), letters)


def _fronts(rows: list[Row], loss: str) -> list[Row]:
    found: dict[int, list[str]] = defaultdict(list)
    for axis, smaller in AXES.items():
        indexed = [(i, row.value(axis), row.value(loss)) for i, row in enumerate(rows)]
        points = [(i, x, y) for i, x, y in indexed if x is not None and y is not None]
        for position in pareto([(x if smaller else -x, y) for _, x, y in points]):
            found[points[position][0]].append(axis)
    return [replace(row, fronts=tuple(found[i])) for i, row in enumerate(rows)]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats, both coordinates to be small; ordered by the first
    coordinate."""
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            front.append(index)
            best = points[index][1]
    return front


def _warnings(rows: Iterable[Row]) -> list[str]:
    rows = [row for row in rows if row.cells or row.tasks]
    checks: tuple[tuple[str, Callable[[EvalResult], bool]], ...] = (
        (
            "Perplexity and divergence of {} rest on fewer than "
            "100 chunks: a 95 % interval may be too narrow.",
            _few_chunks,
        ),
        ("Tokens whose logits were not finite are left out of the numbers of {}.", lambda r: r.excluded > 0),
        (
            "The speed of {} varied too much between repetitions "
            "to compare: measure again on an idle machine.",
            lambda r: bool(r.detail.get("worthless")),
        ),
    )
    out = []
    for text, test in checks:
        hit = [row.label for row in rows if any(test(result) for result in row.cells.values())]
        if hit:
            out.append(text.format("all artifacts" if len(hit) == len(rows) > 1 else ", ".join(hit)))
    loads = [x for row in rows for r in row.cells.values() if (x := _busy(r)) is not None]
    if loads:
        low, high = min(loads), max(loads)
        words = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        out.append(
            "The machine was busy while speed was measured (load "
            f"average {words} per usable core): speeds are too low."
        )
    return out


def _remarks(rows: Iterable[Row]) -> list[str]:
    """What was said of the results shown, and of those that could not be had."""
    out: dict[str, None] = {}
    for row in rows:
        shown = [*row.cells.values(), *(r for metrics in row.tasks.values() for r in metrics.values())]
        for result in (*shown, *(r for r in row.others if r.value is None)):
            out |= dict.fromkeys(map(str, result.detail.get("remarks", ())))
    return list(out)


def _few_chunks(result: EvalResult) -> bool:
    return result.metric in (PERPLEXITY, KL_MEAN) and 0 < len(result.samples) < 100


def _busy(result: EvalResult) -> float | None:
    """Processes a core that wanted to run beside the measurement, where that is too many."""
    load, cores = result.environment.get("load_average"), result.environment.get("cores_usable")
    if not result.metric.endswith("tokens_per_s") or not load or not cores or load <= 0.5 * cores:
        return None
    return round(float(load) / float(cores), 1)
