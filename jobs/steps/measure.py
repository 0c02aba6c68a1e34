"""What steps that measure have in common: a file of results, a row where they fail."""

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.rows import artifact_subject, write_subject
from jobs.steps.convert import ConvertStep
from jobs.steps.step import ModelStep
from jobs.transfer import artifact_files
from quantize.artifact.artifact import MANIFEST
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.hashes import sha256_file
from quantize.into_place import put_file
from quantize.methods.registry import method as find_method
from quantize.methods.registry import require
from quantize.recipe import Recipe
from quantize.results import Subject


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasureStep(ModelStep):
    """Reads the artifacts of the steps that it comes ``after``. ``made``: the one that makes what it
    measures; None for the model itself."""

    made: ConvertStep | None = None

    def command(self, run: Path, stage: Path) -> list[str]:
        return [*self.arguments, "-o", str(stage.relative_to(run))]

    def _digest(self, run: Path) -> str | None:
        path = run / self.output
        return sha256_file(path) if is_result(path) else None

    def staged(self, stage: Path) -> bool:
        return is_result(stage / self.output)

    def place(self, run: Path, stage: Path) -> bool:
        if not self.staged(stage):
            return False
        put_file(stage / self.output, run / self.output)
        return True

    def fail(self, run: Path, reason: str) -> None:
        text = f"{self.kind}: {reason}"
        if (run / self.name / MANIFEST).is_file():
            subject = replace(artifact_subject(run, self.name), status="failed", reason=text)
        else:
            recipe = self.recipe.short if self.recipe else "reference"
            subject = Subject(
                name=self.name, recipe=recipe, model=self.model.label, status="failed", reason=text
            )
        write_subject(run, self.kind, subject)

    def held_bytes(self) -> int:
        """Weights in memory: llama.cpp maps the file; transformers holds float32 on a CPU, whatever was
        stored."""
        llamacpp = find_method(self.method).format.runtime == "llamacpp"
        mapped = self.made.output_bytes if self.made and llamacpp else None
        return mapped or 4 * self.checkpoint.parameters

    def carried(self, run: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for step in self.after:
            found |= artifact_files(run, step.output)
        return found


def is_result(path: Path) -> bool:
    """A whole results file of a step that went well."""
    try:
        document = read_json(path)
        return document["subject"]["status"] == "ok" and isinstance(document["results"], list)
    except (BadInput, KeyError, TypeError):
        return False


def runtime_packages(recipe: Recipe | None) -> tuple[str, ...]:
    """Of what opens the artifact, or the model itself."""
    if recipe is None:
        return ("quantwright", "torch", "transformers")
    method = require(recipe)
    engine = tuple(distribution for distribution, _ in method.engine.needs)
    return (
        "quantwright",
        *(engine if method.format.runtime == "llamacpp" else ("torch", "transformers", *engine)),
    )
