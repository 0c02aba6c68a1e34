"""Where the outputs of steps lie in a run folder, and how they get there: always complete, by one rename."""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.records import Record, identity
from jobs.steps import Row, Step, results_path
from quantize.artifact.artifact import MANIFEST, Artifact
from quantize.artifact.file_hashes import user_hashes
from quantize.checkpoint.checkpoint import sha256_file
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.staging import sweep, sweep_output

WORK = ".work"


class Outputs:
    """``run``: the run folder, absolute."""

    def __init__(self, run: Path):
        self.run = run

    def stage(self, step: Step) -> Path:
        """A fresh folder for the step's own use; ``cache`` in it is the run's, so that steps share the
        reference's logits."""
        stage = self.stage_folder(step)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        (self.run / "cache").mkdir(exist_ok=True)
        (stage / "cache").symlink_to("../../cache")
        return stage

    def stage_folder(self, step: Step) -> Path:
        return self.run / WORK / step.slug

    def identity(self, step: Step) -> list[int] | None:
        return identity(self.run / step.output)

    def committed(self, step: Step, key: str, record: Record | None) -> str | None:
        """Digest of the output where it was committed under ``key``, else None. What a killed runner had not
        yet moved is."""
        if record is None or record.key != key:
            return None
        if record.status == "running":
            if self.identity(step) in (None, record.previous) and self._staged(step) is not None:
                return self.commit(step, self.stage_folder(step))
            if self.identity(step) == record.previous:
                return None
            # An artifact is put in place by its step; the row beside it was still the dead runner's to write.
            return self.commit(step, self.run) if step.kind == "convert" else self.digest(step)
        if record.status == "done":
            digest = self.digest(step)
            return digest if digest == record.digest else None
        return None

    def digest(self, step: Step) -> str | None:
        """Of what lies at the output's place, or None where that is not a whole output."""
        path = self.run / step.output
        try:
            if step.kind == "convert":
                artifact = Artifact.load(path)
                artifact.check_files(user_hashes().sha256)
                return artifact.digest
            if step.kind == "report":
                return self._results_digest() if path.is_file() else None
            if step.kind == "publish":
                return _published_digest(path) if path.is_file() else None
            return sha256_file(path) if _is_result(path) else None
        except (BadInput, OSError):
            return None

    def size_bytes(self, step: Step) -> int | None:
        """Of an artifact's files, the manifest left out; None for other steps."""
        return Artifact.load(self.run / step.output).size_bytes if step.kind == "convert" else None

    def _results_digest(self) -> str:
        """The report shows all results: its digest is theirs, so that it is made anew when one has
        changed."""
        whole = hashlib.sha256()
        for path in sorted((self.run / "results").glob("*.json")):
            whole.update(f"{path.name} {sha256_file(path)}\n".encode())
        return whole.hexdigest()

    def commit(self, step: Step, stage: Path) -> str | None:
        """Move a step's result from its stage into place, with the row of an artifact beside it; None where
        there is none."""
        if step.kind in ("eval", "bench"):
            staged = stage / step.output
            if not _is_result(staged):
                return None
            (self.run / step.output).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, self.run / step.output)
        if (
            step.kind == "publish" and step.output.suffix == ".json"
        ):  # uploaded: what was said of it is what stays here
            staged = stage / "stdout"
            document = self.printed(stage)
            if document is None:
                return None
            staged.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            (self.run / step.output).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, self.run / step.output)
        digest = self.digest(step)
        if step.kind == "convert" and digest is not None:
            self._write(step.name, "convert", artifact_subject(self.run, step.name))
        return digest

    def printed(self, stage: Path) -> dict[str, Any] | None:
        """The JSON document on the last line of the step's stdout."""
        try:
            lines = (stage / "stdout").read_text(encoding="utf-8").splitlines()
            document = json.loads(lines[-1]) if lines else None
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def _staged(self, step: Step) -> Path | None:
        staged = self.stage_folder(step) / step.output
        return staged if step.kind in ("eval", "bench") and _is_result(staged) else None

    def write_row(self, row: Row) -> None:
        """A row for what no step will make; what lies there from an earlier job goes."""
        results = importlib.import_module("quantize.results")
        for stage in ("eval", "bench"):
            (self.run / results_path(row.name, stage)).unlink(missing_ok=True)
        subject = results.Subject(
            name=row.name, recipe=row.recipe, model=row.model, status=row.status, reason=row.reason
        )
        self._write(row.name, "convert", subject)

    def write_failure(self, step: Step, reason: str, stage: Path | None) -> None:
        """The row that a failed step leaves in place of its results."""
        if step.kind in ("report", "publish"):
            return
        if step.kind == "convert":
            self.write_row(Row(step.name, step.model, step.recipe, "failed", reason))
            return
        results = importlib.import_module("quantize.results")
        text = f"{step.kind}: {reason}"
        if (self.run / step.name / MANIFEST).is_file():
            from dataclasses import replace

            subject = replace(artifact_subject(self.run, step.name), status="failed", reason=text)
        else:
            recipe = step.recipe or "reference"
            subject = results.Subject(
                name=step.name, recipe=recipe, model=step.model, status="failed", reason=text
            )
        self._write(step.name, step.kind, subject)

    def _write(self, name: str, stage: str, subject: Any) -> None:
        importlib.import_module("quantize.results").write_results(
            self.run / results_path(name, stage), subject, []
        )

    def clear_leftovers(self, steps: Sequence[Step]) -> None:
        """What a killed step left beside its artifact. Stages of results stay: a finished one is moved into
        place later."""
        for step in steps:
            if step.kind == "convert":
                sweep_output(self.run / step.output)
        sweep(self.run / "cache", ".reference-")


def _published_digest(path: Path) -> str:
    """Of the record of an upload; of a folder, its card and the names and sizes of its files, which are
    artifacts' own."""
    whole = hashlib.sha256(path.read_bytes())
    if path.suffix != ".json":
        for file in sorted(file for file in path.parent.rglob("*") if file.is_file()):
            whole.update(f"{file.relative_to(path.parent)} {file.stat().st_size}\n".encode())
    return whole.hexdigest()


def artifact_subject(run: Path, name: str) -> Any:
    """The artifact at ``run``/``name`` as results describe it."""
    artifact = Artifact.load(run / name)
    manifest = artifact.manifest
    return importlib.import_module("quantize.results").Subject(
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
    )


def _is_result(path: Path) -> bool:
    """A whole results file of a step that went well."""
    try:
        document = read_json(path)
        return document["subject"]["status"] == "ok" and isinstance(document["results"], list)
    except (BadInput, KeyError, TypeError):
        return False
