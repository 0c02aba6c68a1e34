"""``quantwright eval``."""

from pathlib import Path

import click

from evals.measure import measure, raise_failure
from evals.options import EvalOptions
from quantize.commands.options import field_options, run_options
from quantize.metrics import (
    BITS_PER_BYTE,
    DELTA_P_RMS,
    KL_MEAN,
    PERPLEXITY,
    PPL_RATIO,
    TOP1_AGREEMENT,
    WORD_PERPLEXITY,
    kl_percentile,
)
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.terminal import console, emit_json

TABLE_METRICS = (
    PERPLEXITY,
    WORD_PERPLEXITY,
    BITS_PER_BYTE,
    KL_MEAN,
    kl_percentile(99),
    TOP1_AGREEMENT,
    PPL_RATIO,
    DELTA_P_RMS,
)


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@field_options(EvalOptions, first=["reference"])
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="run folder; results go to OUT/results",
)
@run_options
def evaluate(
    artifacts: tuple[str, ...],
    options: EvalOptions,
    out: Path | None,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Measure the quality of ARTIFACT...: artifact folders, .gguf files, Hugging Face folders or Hub ids, or
    files of a GGUF repository: org/name:Q4_K_M, or all of them, org/name:*.

    Perplexity by a named protocol, divergence from a reference on the same token ids, and accuracy on tasks.
    """
    outcome = measure(artifacts, options, run, out)
    rows = outcome.results + [row for row in outcome.unlisted if row.role == "floor"]
    if rows:
        _table(rows)
    if as_json:
        emit_json([row.to_json() for row in rows])
    raise_failure(outcome)


def _table(rows: list[EvalResult]) -> None:
    """One line per artifact and protocol (or task), the figures with their 95 % interval."""
    from rich.table import Table

    text_rows = [row for row in rows if not row.task and row.metric != "generations"]
    out = console(width=240)
    if text_rows:
        metrics = [m for m in TABLE_METRICS if any(row.metric == m for row in text_rows)]
        table = Table(
            title="perplexity and divergence", caption="± half the 95 % interval (chunks resampled)"
        )
        for column in ("artifact", "protocol", "ids", *metrics, "n", "excluded"):
            table.add_column(column, justify="left" if column in ("artifact", "protocol", "ids") else "right")
        for key in dict.fromkeys((row.artifact, row.protocol, row.role) for row in text_rows):
            mine = [row for row in text_rows if (row.artifact, row.protocol, row.role) == key]
            cells = {row.metric: _figure(row) for row in mine}
            name = key[0] + (f" ({key[2]})" if key[2] else "")
            table.add_row(
                name,
                key[1],
                mine[0].ids,
                *(cells.get(m, "") for m in metrics),
                str(mine[0].n),
                str(mine[0].excluded),
            )
        out.print(table)
    task_rows = [row for row in rows if row.task]
    if task_rows:
        table = Table(title="tasks", caption="± half the 95 % interval")
        for column in ("artifact", "task", "metric", "value", "n"):
            table.add_column(column, justify="right" if column in ("value", "n") else "left")
        for row in task_rows:
            by = row.protocol_parameters.get("filter")
            metric = f"{row.metric} ({by})" if by else row.metric
            table.add_row(row.artifact, row.task, metric, _figure(row), str(row.n))
        out.print(table)


def _figure(row: EvalResult) -> str:
    if row.value is None:
        return "n/a"
    if not row.interval:
        return f"{row.value:.5g}"
    return f"{row.value:.5g} ±{(row.interval[1] - row.interval[0]) / 2:.2g}"
