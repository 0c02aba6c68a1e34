"""``quantwright run``, ``plan`` and ``check``."""

from pathlib import Path
from typing import Any

import click

from quantize.commands import emit_json, log
from quantize.errors import BadInput


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="run folder (default: runs/<name of the job>)"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a key of the job file, e.g. evaluate.limit=20000"
)
@click.option("--strict", is_flag=True, help="stop before anything runs where a combination cannot be made")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def run(job: Path, out: Path | None, overrides: tuple[str, ...], strict: bool, as_json: bool) -> int:
    """Run a JOB file (YAML): every model by every recipe, evaluated, benchmarked and reported.

    Each step is a process of its own. Run the same command again and only what is missing is done.
    """
    folder = out or Path("runs") / job_name(job)
    summary = run_job(job, folder, overrides, strict)
    document = report_document(folder, summary)
    print_outcome(summary, document)
    if as_json:
        emit_json(document)
    return int(summary.exit_code)


def run_job(path: Path, out: Path, overrides: tuple[str, ...] = (), strict: bool = False) -> Any:
    """-> quantize.jobs.runner.Summary. Errors: BadInput, Unsupported (with ``strict``) before anything runs."""
    from quantize.errors import Unsupported
    from quantize.jobs.load import load_job
    from quantize.jobs.runner import Runner
    from quantize.jobs.steps import build_plan

    spec = load_job(path, overrides)
    plan = build_plan(spec, path.absolute().parent)
    refused = [row for row in plan.rows if row.status == "unsupported"]
    if strict and refused:
        for row in refused[1:]:
            log(f"quantwright: {row.reason}")
        raise Unsupported(f"{refused[0].reason} (--strict: nothing was run)")
    log(f"{path}: {len(plan.steps)} steps, run folder {out}")
    return Runner(spec, plan, out, log).run()


def job_name(path: Path) -> str:
    """``demo/job.yaml`` -> demo, ``jobs/overnight.yaml`` -> overnight."""
    return path.absolute().parent.name if path.stem == "job" else path.stem


def report_document(run_folder: Path, summary: Any) -> dict[str, Any]:
    """``{"report": path, "rows": [...]}`` as the report step printed it, now or when it last ran; the path made absolute."""
    import json

    document = summary.report
    if document is None:
        try:
            document = json.loads((run_folder / "steps" / "report.json").read_text(encoding="utf-8"))["detail"]
        except (OSError, ValueError, KeyError):
            document = {}
    path = document.get("report")
    return {
        **document,
        "report": str((run_folder / path).resolve()) if path else None,
        "rows": document.get("rows", []),
        "exit_code": summary.exit_code,
        "failed": summary.failed,
        "unsupported": summary.unsupported,
    }


COLUMNS = {
    "recipe": "recipe",
    "status": "status",
    "verified": "verified",
    "size_bytes": "MB",
    "bits_per_weight": "bits/weight",
    "perplexity": "perplexity",
    "kl_mean": "KL mean",
    "top1_agreement": "top-1 %",
    "task_accuracy": "task %",
    "pp_tokens_per_s": "prefill/s",
    "tg_tokens_per_s": "decode/s",
}


def print_outcome(summary: Any, document: dict[str, Any]) -> None:
    """The table and the report's path on stdout; how it went on stderr."""
    from rich.console import Console
    from rich.table import Table

    if document["rows"]:
        table = Table(*COLUMNS.values(), box=None, pad_edge=False)
        for row in document["rows"]:
            table.add_row(*[_cell(key, row.get(key)) for key in COLUMNS])
        Console(width=None if Console().is_terminal else 150).print(table)
    counts = {
        "done": summary.done,
        "already done": summary.skipped,
        "failed": summary.failed,
        "not possible": summary.blocked,
        "unsupported": summary.unsupported,
    }
    log(", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "nothing to do")
    if document["report"]:
        click.echo(f"report: {document['report']}")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "size_bytes":
        return f"{value / 1e6:.1f}"
    if key in ("top1_agreement", "task_accuracy"):
        return f"{100 * value:.1f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


@click.command()
@click.argument("target")
def plan(target: str) -> None:
    raise BadInput("not yet")


@click.command()
@click.argument("model")
def check(model: str) -> None:
    raise BadInput("not yet")
