"""All files of a report. Written into a folder beside it and renamed, so that a report is whole or not
there."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import DROPPINGS
from quantize.into_place import put_in_place
from quantize.staging import claim, staging
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
FILES = ("index.html", "report.md", "results.csv", "report.json", SCHEMA.name, "plots")


def write_report(runs: list[Path], out: Path | None = None, png: bool = False) -> dict[str, Any]:
    """See ``reports.build``."""
    comparison = compare(load(runs))
    out = out or runs[0] / "report"
    real = claim(out, True, runs, _why_not_ours)
    with staging(real) as stage:
        document = _write(comparison, runs, stage, png)
        put_in_place(stage, real, replace=True)
    return {"report": str(out / "index.html"), "rows": document["rows"]}


def _why_not_ours(folder: Path) -> str:
    others = sorted(path.name for path in folder.iterdir() if path.name not in (*FILES, *DROPPINGS))
    return f"holds files that are not a report ({others[0]})" if others else ""


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
    (folder / "index.html").write_text(
        render(comparison, runs, version, dict.fromkeys(remarks)), encoding="utf-8"
    )
    (folder / "report.md").write_text(report_markdown(comparison, advice, plots, version), encoding="utf-8")
    (folder / "results.csv").write_text(report_csv(comparison), encoding="utf-8")
    (folder / "report.json").write_text(
        json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    return document
