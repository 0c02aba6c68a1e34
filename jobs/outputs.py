"""Where the outputs of steps lie in a run folder, and how they get there: always complete, by one rename."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from jobs.records import Record, identity
from jobs.steps.step import Step
from quantize.staging import sweep

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
            stage = self.stage_folder(step)
            if self.identity(step) in (None, record.previous) and step.staged(stage):
                return step.commit(self.run, stage)
            if self.identity(step) == record.previous:
                return None
            return step.adopt(self.run)
        if record.status == "done":
            digest = step.digest(self.run)
            return digest if digest == record.digest else None
        return None

    def clear_leftovers(self, steps: Sequence[Step]) -> None:
        """What a killed step left beside its artifact. Stages of results stay: a finished one is moved into
        place later."""
        for step in steps:
            step.sweep(self.run)
        sweep(self.run / "cache", ".reference-")
