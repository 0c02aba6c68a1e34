"""Rows that a runner writes beside those of measurements: of an artifact, and of one that cannot be made."""

from dataclasses import dataclass
from pathlib import Path

from quantize.artifact.artifact import Artifact
from quantize.results import Subject, results_path, write_results


@dataclass(frozen=True)
class Row:
    """An artifact that cannot be made: ``status`` unsupported or failed."""

    name: str
    model: str
    recipe: str
    status: str
    reason: str


def write_row(run: Path, row: Row) -> None:
    """A row for what no step will make; what lies there from an earlier job goes."""
    for stage in ("eval", "bench"):
        results_path(run, row.name, stage).unlink(missing_ok=True)
    subject = Subject(name=row.name, recipe=row.recipe, model=row.model, status=row.status, reason=row.reason)
    write_subject(run, "convert", subject)


def write_subject(run: Path, stage: str, subject: Subject) -> None:
    """A row without numbers, in place of what ``stage`` had found before."""
    write_results(results_path(run, subject.name, stage), subject, [])


def artifact_subject(run: Path, name: str) -> Subject:
    """The artifact at ``run``/``name`` as results describe it."""
    artifact = Artifact.load(run / name)
    manifest = artifact.manifest
    return Subject(
        name=name,
        recipe=manifest.recipe_short,
        model=manifest.source.id,
        digest=artifact.digest,
        verified=artifact.verified,
        size_bytes=artifact.size_bytes,
        bits_per_weight=artifact.bits_per_weight,
        parameters=manifest.source.parameters,
        loads_in=manifest.loads_in,
        notes=tuple(note.model_dump() for note in manifest.notes),
        engine=manifest.engine,
    )
