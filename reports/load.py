"""Run folders -> what was measured, one entry per artifact, however many files and runs its numbers lie
in."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.results import EvalResult, Subject, read_results

#: Parameters of a protocol that say how it was run and not what was measured: two results may differ in them
#: and still compare.
RUN_PARAMETERS = frozenset({"repetitions", "rounds", "threads", "n_batch", "n_ubatch"})
#: What of the environment says on which data a number was measured.
DATA_KEYS = ("text_sha256", "ids_sha256", "task_sha256", "items_sha256")


@dataclass(frozen=True)
class Entry:
    """One artifact (or reference, or floor) with every result about it. ``runs`` are the folders that they
    came from."""

    subject: Subject
    results: tuple[EvalResult, ...]
    runs: tuple[Path, ...]
    failures: tuple[str, ...] = ()  # reasons of steps that failed while others gave results


def protocol_key(result: EvalResult) -> tuple[Any, ...]:
    """Equal for two results that measure the same thing in the same way, so that their values may stand side
    by side."""
    parameters = {k: v for k, v in result.protocol_parameters.items() if k not in RUN_PARAMETERS}
    data = tuple(result.environment.get(name) for name in DATA_KEYS)
    return (
        result.metric,
        result.task,
        result.protocol,
        result.protocol_version,
        repr(sorted(parameters.items())),
        data,
    )


def load(runs: Sequence[Path]) -> list[Entry]:
    """Read every run. The same artifact in several files or runs becomes one entry; where one thing was
    measured twice, the run named last wins.

    Errors: BadInput where a run is missing, holds no results, or holds a malformed file.
    """
    if not runs:
        raise BadInput(
            "no run given; name at least one folder that `quantwright eval`, `bench` or `run` wrote with -o"
        )
    entries: list[Entry] = []
    for run in runs:
        if not run.is_dir():
            raise BadInput(
                f"{run}: no such folder; give a folder that "
                "`quantwright eval`, `bench` or `run` wrote with -o"
            )
        for subject, results in read_results(run):
            for new in _split(subject, results, run):
                index = next((i for i, old in enumerate(entries) if _same(old.subject, new.subject)), None)
                if index is None:
                    entries.append(new)
                else:
                    entries[index] = _merge(entries[index], new)
    return entries


def _split(subject: Subject, results: Sequence[EvalResult], run: Path) -> list[Entry]:
    """Floors are written beside the reference that they belong to: each becomes a separate entry."""
    floors: dict[str, list[EvalResult]] = {}
    own = []
    for result in results:
        if result.role == "floor" and subject.role != "floor":
            floors.setdefault(result.artifact, []).append(result)
        else:
            own.append(result)
    entries = [Entry(subject, tuple(own), (run,))]
    for name, rows in floors.items():
        entries.append(
            Entry(
                Subject(name=name, recipe=name, model=subject.model or subject.name, role="floor"),
                tuple(rows),
                (run,),
            )
        )
    return entries


def _same(a: Subject, b: Subject) -> bool:
    """Whether two subjects are the same artifact: by digest where both have one, else by name or by model,
    and by recipe."""
    if "floor" in (a.role, b.role):
        return (a.role, a.name, a.recipe, a.model) == (b.role, b.name, b.recipe, b.model)
    # Of another tool's GGUF one stage gives the file name, another its stem.
    if a.recipe.removesuffix(".gguf") != b.recipe.removesuffix(".gguf"):
        return False
    if a.digest and b.digest:
        return a.digest == b.digest
    return a.name == b.name or (bool(a.model) and a.model == b.model and "reference" not in (a.role, b.role))


def _merge(old: Entry, new: Entry) -> Entry:
    """Later values win per measured thing; of the subject the first known value of each field stays."""
    results = {(protocol_key(r), r.role, r.backend): r for r in old.results}
    results.update({(protocol_key(r), r.role, r.backend): r for r in new.results})
    # A step that gave nothing (an out-of-memory benchmark, say) must not hide what the others gave.
    failures = old.failures + tuple(
        e.subject.reason for e in (old, new) if e.subject.status != "ok" and e.subject.reason
    )
    known = [old, new] if old.subject.status == "ok" or new.subject.status != "ok" else [new, old]
    first, second = known[0].subject, known[1].subject
    merged = {f.name: getattr(first, f.name) or getattr(second, f.name) for f in fields(Subject)}
    if first.status != "ok" or second.status != "ok":
        merged["status"] = "partial" if results else first.status if first.status != "ok" else second.status
    notes = [*first.notes, *(note for note in second.notes if note not in first.notes)]
    merged["notes"] = tuple(notes)
    subject = replace(first, **merged)
    runs = old.runs + tuple(run for run in new.runs if run not in old.runs)
    return Entry(subject, tuple(results.values()), runs, tuple(dict.fromkeys(failures)))
