"""All files of a report. Written into a folder beside it and renamed, so that a report is whole or not there."""

import errno
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, StepFailed
from reports.compare import compare
from reports.document import report_csv, report_json
from reports.html import default_limits, render
from reports.load import load
from reports.markdown import report_markdown
from reports.memory import find_shapes
from reports.plots import write_plots, write_pngs
from reports.recommend import recommend
from reports.rows import Comparison

SCHEMA = Path(__file__).parent / "report.schema.json"


def write_report(runs: list[Path], out: Path | None = None, png: bool = False) -> dict[str, Any]:
    """See ``reports.build``."""
    comparison = compare(load(runs))
    out = out or runs[0] / "report"
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; give -o a folder for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise BadInput(f"{out}: holds files that are not a report; give -o another folder")
    stage = out.absolute().parent / f".{out.name}.staging-{os.getpid()}"
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        document = _write(comparison, runs, stage, png)
        if out.exists():
            shutil.rmtree(out)
        stage.rename(out)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise StepFailed(f"{out}: the report cannot be written: {reason}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return {"report": str(out / "index.html"), "rows": document["rows"]}


def _write(comparison: Comparison, runs: list[Path], folder: Path, png: bool) -> dict[str, Any]:
    version = metadata.version("quantwright")
    advice, plots, remarks = [], [], []
    for index, group in enumerate(comparison.groups):
        prefix = f"{index + 1}-" if len(comparison.groups) > 1 else ""
        shapes = find_shapes(group, [Path(), *runs])
        advice.append(recommend(group, default_limits(group), shapes))
        files = write_plots(group, folder / "plots", prefix)
        plots.append([f"plots/{file.name}" for file in files])
        remark = write_pngs(group, folder / "plots", prefix)[1] if png else ""
        if remark:
            remarks.append(remark)
    document = report_json(comparison, [str(run) for run in runs], version)
    (folder / "index.html").write_text(render(comparison, runs, version, dict.fromkeys(remarks)), encoding="utf-8")
    (folder / "report.md").write_text(report_markdown(comparison, advice, plots, version), encoding="utf-8")
    (folder / "results.csv").write_text(report_csv(comparison), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    return document
