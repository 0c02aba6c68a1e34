"""A comparison as one JSON document (and CSV): the numbers of the report, for programs."""

import csv
import io
from typing import Any

from quantize.metrics import (
    BITS_PER_BYTE,
    GPU_MEMORY_BYTES,
    KL_MAX,
    KL_MEAN,
    KL_MEDIAN,
    KL_SAME_TOKENS,
    KL_WEIGHTS_ONLY,
    LOAD_MS,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
    TTFT_MS,
    kl_percentile,
)
from quantize.terminal import printable
from reports.differences import Difference
from reports.rows import Comparison, Group, Row, bounds, head

SCHEMA_VERSION = 1
#: The numbers of a row, in the order of the CSV's columns.
NUMBERS = (
    PERPLEXITY, KL_MEAN, KL_MEDIAN, kl_percentile(99), KL_MAX, KL_WEIGHTS_ONLY, KL_SAME_TOKENS,
    TOP1_AGREEMENT,
    BITS_PER_BYTE, PP_TOKENS_PER_S, TG_TOKENS_PER_S, TTFT_MS, LOAD_MS, PEAK_MEMORY_BYTES,
    GPU_MEMORY_BYTES,
)  # fmt: skip


def row_json(group: Group, row: Row) -> dict[str, Any]:
    """One row as in DESIGN's contract, with each number's interval, standard error, protocol and backend
    beside it."""
    s = row.subject
    out: dict[str, Any] = {
        "recipe": s.recipe,
        "label": row.label,
        "artifact": s.name,
        "model": group.model,
        "method": row.family,
        "status": s.status,
        "reason": s.reason or "; ".join(row.failures),
        "role": s.role or ("reference" if row is group.reference else ""),
        "verified": s.verified,
        "digest": s.digest,
        "size_bytes": s.size_bytes if s.size_bytes is not None else row.value("size_bytes"),
        "bits_per_weight": s.bits_per_weight,
        "parameters": s.parameters,
        "loads_in": list(s.loads_in),
        "notes": list(s.notes),
        "engine": s.engine,
        "made_s": s.made_s,
        "made_peak_bytes": s.made_peak_bytes,
    }
    for metric in NUMBERS:
        out[metric] = row.value(metric)
    out["task_accuracy"] = row.task_accuracy
    out["perplexity_change"] = _difference(row.perplexity_change)
    out["within_noise"] = row.within_noise
    out["pareto"] = list(row.fronts)
    out["uncertainty"] = {
        metric: {
            "interval": bounds(r),
            "stderr": r.stderr,
            "n": r.n,
            "excluded": r.excluded,
            "protocol": r.protocol,
            "ids": r.ids,
            "backend": r.backend,
        }
        for metric, r in row.cells.items()
    }
    out["tasks"] = {
        task: {
            "metric": head(metrics).metric,
            "value": head(metrics).value,
            "stderr": head(metrics).stderr,
            "interval": bounds(head(metrics)),
            "n": head(metrics).n,
            "all": {name: r.value for name, r in metrics.items()},
            "difference": _difference(row.task_differences.get(task)),
        }
        for task, metrics in row.tasks.items()
    }
    return out


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "value": found.value,
        "interval": found.interval,
        "p_value": found.p_value,
        "p_holm": found.holm,
        "n": found.n,
    }


def report_json(comparison: Comparison, runs: list[str], version: str) -> dict[str, Any]:
    """The document that ``report.schema.json`` describes."""
    return {
        "schema": SCHEMA_VERSION,
        "quantwright": version,
        "runs": runs,
        "models": [
            {
                "model": group.model,
                "reference": group.reference.label if group.reference else None,
                "reference_why": group.reference_why,
                "loss_metric": group.loss_metric,
                "warnings": list(group.warnings),
                "flagged_metrics": [
                    {
                        "metric": each.metric,
                        "task": each.task,
                        "finer": each.finer,
                        "coarser": each.coarser,
                        "difference": _difference(each.difference),
                    }
                    for each in group.inversions
                ],
            }
            for group in comparison.groups
        ],
        "rows": [row_json(group, row) for group, row in comparison.rows],
    }


def report_csv(comparison: Comparison) -> str:
    """One line an artifact; an interval's ends stand in columns ``..._low`` and ``..._high``."""
    text = io.StringIO()
    names = ["model", "recipe", "artifact", "role", "status", "verified", "size_bytes", "bits_per_weight"]
    columns = [*names]
    for metric in NUMBERS:
        columns += [metric, f"{metric}_low", f"{metric}_high"]
    columns += [
        "protocol",
        "perplexity_change",
        "perplexity_change_low",
        "perplexity_change_high",
        "task_accuracy",
        "within_noise",
    ]
    tasks = sorted({task for _, row in comparison.rows for task in row.tasks})
    columns += [f"task:{task}" for task in tasks] + ["reason", "digest"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for group, row in comparison.rows:
        data = row_json(group, row)
        line = {key: data[key] for key in [*names, "task_accuracy", "within_noise", "reason", "digest"]}
        for metric in NUMBERS:
            low, high = row.bounds(metric) or (None, None)
            line |= {metric: data[metric], f"{metric}_low": low, f"{metric}_high": high}
        if row.perplexity_change:
            low, high = row.perplexity_change.interval or (None, None)
            line |= {
                "perplexity_change": row.perplexity_change.value,
                "perplexity_change_low": low,
                "perplexity_change_high": high,
            }
        line["protocol"] = row.cells[PERPLEXITY].protocol if PERPLEXITY in row.cells else ""
        line |= {f"task:{task}": head(metrics).value for task, metrics in row.tasks.items()}
        writer.writerow({key: _cell(value) for key, value in line.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet takes a cell that begins with = + - @ (wide ones too) for a formula: text gets an
    apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return "'" + text if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text
