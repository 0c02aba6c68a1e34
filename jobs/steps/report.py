"""The step that makes the report of all results in the run folder."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jobs.steps.step import Step, printed
from quantize.hashes import sha256_file


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportStep(Step):
    """Its document, ``{"report": path, "rows": [...]}``, is kept in its record."""

    kind: ClassVar[str] = "report"
    alone: ClassVar[bool] = True
    light: ClassVar[bool] = True

    @property
    def id(self) -> str:
        return self.kind

    def _digest(self, run: Path) -> str | None:
        """The report shows all results: its digest is theirs, so it is made again when one has changed."""
        if not (run / self.output).is_file():
            return None
        whole = hashlib.sha256()
        for path in sorted((run / "results").glob("*.json")):
            whole.update(f"{path.name} {sha256_file(path)}\n".encode())
        return whole.hexdigest()

    def detail(self, stage: Path) -> dict[str, Any]:
        return printed(stage) or {}


def report_step(prefers: Sequence[Step]) -> ReportStep:
    return ReportStep(
        arguments=("report", ".", "--json"),
        output=Path("report/index.html"),
        prefers=tuple(prefers),
        packages=("quantwright",),
    )
