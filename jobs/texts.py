"""The files that a job's texts, prompts and tasks name."""

import hashlib
from dataclasses import replace
from pathlib import Path

from jobs.spec import HELD_OUT, Job, resolve_path
from quantize.calibration.sources import parse_sources, spell_sources
from quantize.calibration.texts import held_out_text
from quantize.errors import BadInput
from quantize.recipe import CalibrationOptions


class Texts:
    """The files that the job's texts and tasks stand for; ``held-out`` and names of lm-eval's tasks stay as
    they are."""

    def __init__(self, job: Job, base: Path):
        self.base = base
        evaluate = job.evaluate
        self.text: str | Path | None = self._text(evaluate.text) if evaluate and evaluate.text else None
        self.prompts = self._prompts(evaluate.prompts) if evaluate and evaluate.prompts else None
        self.tasks: list[str | Path] = [self._task(task) for task in evaluate.tasks] if evaluate else []
        if evaluate and self.text is None and not self.tasks:
            self.text = HELD_OUT

    @property
    def held_out_sha256(self) -> str:
        return hashlib.sha256(held_out_text().encode()).hexdigest()

    def _text(self, text: str) -> str | Path:
        if text == HELD_OUT:
            return HELD_OUT
        path = resolve_path(text, self.base)
        if path is None:
            raise BadInput(
                f"evaluate.text: {self.base / text}: no such file; "
                f"give a text file, or {HELD_OUT} for the built-in text"
            )
        return path

    def _prompts(self, prompts: str) -> Path:
        path = resolve_path(prompts, self.base)
        if path is None:
            raise BadInput(
                f"evaluate.prompts: {self.base / prompts}: no such "
                "file; give a text file with one prompt per line"
            )
        return path

    def _task(self, task: str) -> str | Path:
        if task == HELD_OUT:
            return HELD_OUT
        name, equals, data = task.partition("=")  # lm-eval's task NAME on local data
        if equals and (place := resolve_path(data, self.base)):
            return f"{name}={place}"
        path = resolve_path(task, self.base)
        if path is None and (task.endswith((".jsonl", ".yaml", ".yml")) or "/" in task):
            raise BadInput(f"evaluate.tasks: {self.base / task}: no such file")
        return path or task

    def calibration(self, options: CalibrationOptions) -> CalibrationOptions:
        """Its files by their full paths. Errors: BadInput where a weight is no number."""
        parts = [
            replace(part, place=str(path.resolve())) if (path := part.path(self.base)) else part
            for part in parse_sources(options.source, self.base)
        ]
        return options.model_copy(update={"source": spell_sources(tuple(parts))})
