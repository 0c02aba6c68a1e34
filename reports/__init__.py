"""Results -> a comparison a person decides from: HTML, Markdown, CSV, JSON, plots, advice, model card. Never
imports torch."""

from pathlib import Path
from typing import Any


def build(run_folders: list[Path], out: Path | None = None, png: bool = False) -> dict[str, Any]:
    """Write ``out`` (default: the first run's ``report`` folder): index.html, report.md, results.csv,
    report.json, report.schema.json and plots/ (SVG; with ``png`` the scatter plots as PNG too, where
    matplotlib is installed).

    Returns ``{"report": path of index.html, "rows": [...]}`` with one row an artifact, as ``quantwright
    report --json`` prints.
    Errors: BadInput where a run is missing or malformed, or ``out`` is not a folder; StepFailed where it
    cannot be written.
    """
    from reports.write import write_report

    return write_report([Path(run) for run in run_folders], out, png)
