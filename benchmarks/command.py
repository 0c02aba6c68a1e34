"""``quantwright bench``."""

from pathlib import Path

import click

from benchmarks.options import BenchOptions
from benchmarks.speed import bench as do_bench
from benchmarks.targets import find_target
from quantize.commands.options import field_options, run_options
from quantize.errors import BadInput
from quantize.metrics import LOAD_MS, PEAK_MEMORY_BYTES, PP_TOKENS_PER_S, SIZE_BYTES, TG_TOKENS_PER_S, TTFT_MS
from quantize.recipe import RunOptions
from quantize.results import EvalResult, results_path, write_results
from quantize.sources.gguf_repository import expand
from quantize.staging import claim_run
from quantize.terminal import console, emit_json, log

COLUMNS = (PP_TOKENS_PER_S, TG_TOKENS_PER_S, TTFT_MS, LOAD_MS, PEAK_MEMORY_BYTES, SIZE_BYTES)


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="run folder; results go to OUT/results")
@field_options(BenchOptions)
@run_options
def bench(
    artifacts: tuple[str, ...],
    out: Path | None,
    options: BenchOptions,
    run: RunOptions,
    as_json: bool,
) -> int:
    """Measure speed and memory of ARTIFACT...: artifact folders, .gguf files, Hugging Face folders or Hub
    ids, or files of a GGUF repository: org/name:Q4_K_M, or all of them, org/name:*.

    Each is opened in a fresh process. pp512 and tg128 have llama-bench's meaning; peak memory is that of the
    process.
    """
    names = [one for name in artifacts for one in expand(name)]
    if len(set(names)) < len(names):
        raise BadInput("bench: an artifact is listed twice; use --rounds to measure each several times")
    if options.prune and options.rounds > 1:
        raise BadInput(
            "bench: --rounds goes through all artifacts in turn, "
            "so none can be deleted before the next: drop --prune"
        )
    if out is not None:
        claim_run(out)
    errors: list[Exception] = []
    rows: list[EvalResult] = []
    for together in [[name] for name in names] if options.prune else [names]:
        found = [find_target(name, options.load_as or "", run.trust_remote_code) for name in together]
        for _, _, typed in found:
            for note in typed.notes:
                log(f"{typed.name}: {note['what']} ({note['why']})")
        outcome = do_bench([target for target, _, _ in found], options, run, log)
        for target, subject, typed in found:
            measured = outcome[target.name]
            if isinstance(measured, Exception):
                errors.append(measured)
            else:
                rows += measured
                if out is not None:
                    write_results(results_path(out, target.name, "bench"), subject, measured)
            if options.prune:
                typed.prune(log)
    _table(names, rows)
    if as_json:
        emit_json([row.to_json() for row in rows])
    if errors:
        raise errors[0]
    return 0


def _table(names: list[str], rows: list) -> None:  # type: ignore[type-arg]
    """Median and half the width from least to greatest, per artifact."""
    from rich.table import Table

    protocols = sorted(
        {(COLUMNS.index(row.metric), row.protocol, row.metric) for row in rows if row.metric in COLUMNS}
    )
    table = Table(
        "artifact",
        *[_heading(metric, protocol) for _, protocol, metric in protocols],
        box=None,
        pad_edge=False,
    )
    for name in names:
        cells = {(row.metric, row.protocol): row for row in rows if row.artifact == name}
        table.add_row(name, *[_cell(cells.get((metric, protocol))) for _, protocol, metric in protocols])
    console().print(table)


def _heading(metric: str, protocol: str) -> str:
    names = {
        LOAD_MS: "load ms",
        PEAK_MEMORY_BYTES: "peak MB",
        SIZE_BYTES: "disk MB",
        TTFT_MS: "first token ms",
    }
    return names.get(metric, f"{protocol} tokens/s")


def _cell(row) -> str:  # type: ignore[no-untyped-def]
    if row is None or row.value is None:
        return "-"
    scale = 1e-6 if row.unit == "bytes" else 1.0
    value = f"{row.value * scale:,.1f}"
    if row.metric in (PP_TOKENS_PER_S, TG_TOKENS_PER_S) and row.n > 1:
        value += f" ± {(row.detail['max'] - row.detail['min']) / 2:,.1f}"
    return value
