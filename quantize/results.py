"""One measured number with everything needed to judge it: protocol, uncertainty, environment. Latency is the
same type."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from quantize.errors import BadInput
from quantize.files import read_json
from quantize.into_place import write_json
from quantize.result_fields import (
    Detail,
    Environment,
    Interval,
    Measured,
    Note,
    Samples,
    Whole,
    Word,
    cleaned,
)
from quantize.terminal import clean_lines, printable

SCHEMA_VERSION = 1
STAGES = ("convert", "eval", "bench")  # what has results


@dataclass(frozen=True)
class EvalResult:
    """``artifact`` is what the person typed; ``stderr`` the named tool's own formula, ``interval`` ours (95
    %).

    ``samples`` are the values that paired statistics need: one per chunk (perplexity, divergence), per item
    (tasks) or per repetition (speed). ``role`` is empty, ``reference``, or ``floor`` for rows that were not
    listed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # of what is read from a file

    artifact: Word
    metric: Word
    protocol: Word
    value: Measured
    stderr: Measured = None
    interval: Interval = None
    n: Whole = 0
    excluded: Whole = 0
    unit: Word = ""
    task: Word = ""
    role: Word = ""
    ids: Word = ""  # "source" or "runtime": whose tokenizer made the token ids
    backend: Word = ""
    artifact_digest: Word = ""
    protocol_version: Whole = 1
    protocol_parameters: dict[str, Any] = field(default_factory=dict)
    samples: Samples = ()
    environment: Environment = field(default_factory=dict)
    detail: Detail = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "EvalResult":
        """Errors: ValueError."""
        return _RESULT.validate_python(data)


@dataclass(frozen=True)
class Subject:
    """What was measured, as a report needs it, so that reporting does not need the artifact."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Word  # as typed
    recipe: Word  # short spelling; file name for artifacts of other tools
    model: Word = ""  # source checkpoint
    digest: Word = ""
    status: Word = "ok"  # ok, failed, unsupported
    reason: str = ""  # why failed or unsupported
    verified: Word = ""
    size_bytes: Whole | None = None
    bits_per_weight: Measured = None
    parameters: Whole | None = None
    loads_in: tuple[Word, ...] = ()
    notes: tuple[Note, ...] = ()
    role: Word = ""
    engine: Word = ""  # name and version of what made it
    made_s: Measured = None  # seconds that making and verifying it took
    made_peak_bytes: Whole | None = None  # the most that one of its processes held meanwhile


_RESULT, _SUBJECT = TypeAdapter(EvalResult), TypeAdapter(Subject)


def results_path(run: Path, name: str, stage: str) -> Path:
    """Where the results of ``stage`` (one of ``STAGES``) for what the person typed as ``name`` go:
    RUN/results/<slug>.<stage>.json. Different names have different slugs."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.strip("/")).lstrip(".-")
    if len(slug) > 100 or not slug or "/" in name.strip("/"):
        import hashlib

        slug = f"{slug[-92:].lstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return run / "results" / f"{slug}.{stage}.json"


def write_results(path: Path, subject: Subject, results: list[EvalResult]) -> None:
    """One file per subject and step; written under a temporary name and renamed."""
    document = {
        "schema": SCHEMA_VERSION,
        "subject": asdict(subject),
        "results": [r.to_json() for r in results],
    }
    write_json(path, document, allow_nan=False)


def merge_results(path: Path, subject: Subject, results: list[EvalResult]) -> None:
    """``write_results``, keeping what the file holds of the same bytes by another protocol, on another text
    or task."""
    kept: list[EvalResult] = []
    try:
        before, rows = _read(path) if path.exists() else (subject, [])
        kept = rows if subject.digest and before.digest == subject.digest else []
    except BadInput:
        pass  # nothing that could be kept
    new = {_measurement(row) for row in results}
    write_results(path, subject, results + [row for row in kept if _measurement(row) not in new])


def _measurement(row: EvalResult) -> tuple[object, ...]:
    parameters = {
        key: value for key, value in row.protocol_parameters.items() if key not in ("lm_eval", "task_version")
    }
    data = (row.environment.get("text_sha256", ""), row.environment.get("items_sha256", ""))
    return (
        row.artifact,
        row.metric,
        row.protocol,
        row.task,
        row.role,
        row.ids,
        repr(sorted(parameters.items())),
        data,
    )


def read_results(run: Path) -> list[tuple[Subject, list[EvalResult]]]:
    """Everything under ``run``/results. Errors: BadInput where nothing lies there or a file is malformed."""
    paths = sorted((run / "results").glob("*.json"))
    if not paths:
        raise BadInput(
            f"{run}: no results (expected {run / 'results'}/*.json); "
            f"make some with `quantwright eval ... -o {run}`"
        )
    return [_read(path, clean_lines) for path in paths]


def _read(path: Path, clean: Callable[[str], str] | None = None) -> tuple[Subject, list[EvalResult]]:
    document = read_json(path)
    if document.get("schema") != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: not a results file of this version (schema {printable(document.get('schema'), 50)}, "
            f"expected {SCHEMA_VERSION}); remove it or measure again"
        )
    document = cleaned(document, clean) if clean else document
    results = document.get("results")
    if not isinstance(results, list):
        raise BadInput(f"{path}: not a results file (no list of results); remove it or measure again")
    where = "subject"
    try:
        subject = _SUBJECT.validate_python(document.get("subject"))
        rows = []
        for index, row in enumerate(results):
            where = f"results.{index}"
            result = EvalResult.from_json(row)
            if result.value is None and row.get("value") is not None:
                remark = f"{result.artifact}: {result.metric} is {row['value']:.3g}, too much to compare"
                result = replace(
                    result, detail=result.detail | {"remarks": [*result.detail.get("remarks", ()), remark]}
                )
            rows.append(result)
        return subject, rows
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field_name = printable(".".join(map(str, (where, *first["loc"]))), 200)
        raise BadInput(
            f"{path}: {field_name}: {printable(first['msg'], 300)}; remove it or measure again"
        ) from None
