"""How a job ended, as `run` and `demo` say it: the table, the report's path, the JSON document."""

from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.records import Records
from jobs.summary import Summary
from quantize.metrics import KL_MEAN, PERPLEXITY, PP_TOKENS_PER_S, SIZE_BYTES, TG_TOKENS_PER_S, TOP1_AGREEMENT
from quantize.terminal import console, log, say


def report_document(run_folder: Path, summary: Summary) -> dict[str, Any]:
    """``{"report": path, "rows": [...]}`` as the report step printed it, now or when it last ran; the path
    made absolute."""
    document = summary.report
    if document is None:
        record = Records(run_folder).read("report")
        document = record.detail if record else {}
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
    SIZE_BYTES: "MB",
    "bits_per_weight": "bits/weight",
    PERPLEXITY: "perplexity",
    KL_MEAN: "KL mean",
    TOP1_AGREEMENT: "top-1 %",
    "task_accuracy": "task %",
    PP_TOKENS_PER_S: "prefill/s",
    TG_TOKENS_PER_S: "decode/s",
}


def print_outcome(summary: Summary, document: dict[str, Any]) -> None:
    """The table and the report's path on stdout; how it went on stderr."""
    if document["rows"]:
        table = Table(*COLUMNS.values(), box=None, pad_edge=False)
        for row in document["rows"]:
            table.add_row(*[_cell(key, row.get(key)) for key in COLUMNS])
        console(width=150).print(table)
    counts = {
        "done": summary.done,
        "already done": summary.skipped,
        "taken from the cache": summary.reused,
        "failed": summary.failed,
        "not possible": summary.blocked,
        "unsupported": summary.unsupported,
    }
    told = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "nothing done"
    log(told + ("; interrupted: run the same command again to continue" if summary.interrupted else ""))
    if document["report"]:
        say(f"report: {document['report']}")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == SIZE_BYTES:
        return f"{value / 1e6:.1f}"
    if key in (TOP1_AGREEMENT, "task_accuracy"):
        return f"{100 * value:.1f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
