"""One measured number with everything needed to judge it: protocol, uncertainty, environment. Latency is the same type."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.staging import whole_file

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvalResult:
    """``artifact`` is what the person typed; ``stderr`` the named tool's own formula, ``interval`` ours (95 %).

    ``samples`` are the values that paired statistics need: one per chunk (perplexity, divergence), per item (tasks) or per
    repetition (speed). ``role`` is empty, ``reference``, or ``floor`` for rows that nobody listed.
    """

    artifact: str
    metric: str
    protocol: str
    value: float | None
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    excluded: int = 0
    unit: str = ""
    task: str = ""
    role: str = ""
    ids: str = ""  # "source" or "runtime": whose tokenizer made the token ids
    backend: str = ""
    artifact_digest: str = ""
    protocol_version: int = 1
    protocol_parameters: dict[str, Any] = field(default_factory=dict)
    samples: tuple[float, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "EvalResult":
        data = dict(data)
        data["samples"] = tuple(data.get("samples") or ())
        data["interval"] = tuple(data["interval"]) if data.get("interval") else None
        return cls(**data)


@dataclass(frozen=True)
class Subject:
    """What was measured, as a report needs it, so that reporting needs no artifact at hand."""

    name: str  # as typed
    recipe: str  # short spelling; file name for artifacts of other tools
    model: str = ""  # source checkpoint
    digest: str = ""
    status: str = "ok"  # ok, failed, unsupported
    reason: str = ""  # why failed or unsupported
    verified: str = ""
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    parameters: int | None = None
    loads_in: tuple[str, ...] = ()
    notes: tuple[dict[str, str], ...] = ()
    role: str = ""


def results_path(run: Path, name: str, stage: str) -> Path:
    """Where the results of ``stage`` (``convert``, ``eval``, ``bench``) for what the person typed as ``name`` go:
    RUN/results/<slug>.<stage>.json. Different names give different slugs."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.strip("/")).lstrip(".-")
    if len(slug) > 100 or not slug or "/" in name.strip("/"):
        import hashlib

        slug = f"{slug[-92:].lstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return run / "results" / f"{slug}.{stage}.json"


def write_results(path: Path, subject: Subject, results: list[EvalResult]) -> None:
    """One file per subject and step; written under a temporary name and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA_VERSION, "subject": asdict(subject), "results": [r.to_json() for r in results]}
    with whole_file(path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def merge_results(path: Path, subject: Subject, results: list[EvalResult]) -> None:
    """``write_results``, keeping what the file holds of the same bytes by another protocol, on another text or task."""
    kept: list[EvalResult] = []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if subject.digest and document["subject"]["digest"] == subject.digest:
            kept = [EvalResult.from_json(row) for row in document["results"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or nothing that could be kept
    new = {_measurement(row) for row in results}
    write_results(path, subject, results + [row for row in kept if _measurement(row) not in new])


def _measurement(row: EvalResult) -> tuple[object, ...]:
    return (row.artifact, row.metric, row.protocol, row.task, row.role, row.ids, row.environment.get("text_sha256", ""))


def read_results(run: Path) -> list[tuple[Subject, list[EvalResult]]]:
    """Everything under ``run``/results. Errors: BadInput where nothing lies there or a file is malformed."""
    paths = sorted((run / "results").glob("*.json"))
    if not paths:
        raise BadInput(f"{run}: no results (expected {run / 'results'}/*.json); make some with `quantwright eval ... -o {run}`")
    out = []
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            subject = dict(document["subject"])
            subject["loads_in"], subject["notes"] = tuple(subject["loads_in"]), tuple(subject["notes"])
            out.append((Subject(**subject), [EvalResult.from_json(r) for r in document["results"]]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: not a results file ({error}); remove it or measure again") from None
    return out
