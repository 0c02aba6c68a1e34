"""``quantwright bench``."""

from pathlib import Path

import click

from quantize.commands.options import run_options
from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.terminal import console, emit_json, log

COLUMNS = ("pp_tokens_per_s", "tg_tokens_per_s", "ttft_ms", "load_ms", "peak_memory_bytes", "size_bytes")


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="run folder; results go to OUT/results")
@click.option(
    "--prefill",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="tokens processed in one go (pp)",
)
@click.option(
    "--decode",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="tokens generated one by one (tg)",
)
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="samples per process"
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="go through all artifacts so often (A B A B)",
)
@click.option(
    "--depth",
    "depths",
    default="0",
    show_default=True,
    help="tokens in the cache before decoding, e.g. 0,512",
)
@click.option("--batch", "batches", default="1", show_default=True, help="sequences at once, e.g. 1,4,16")
@click.option(
    "--attention",
    default="",
    help="implementation: eager, sdpa, flash_attention_2, ...; of llama.cpp eager or flash",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="torch.compile; the first call, which compiles, is not counted",
)
@click.option("--load-as", default="", help="quantize on the fly (quanto, bnb recipes)")
@click.option(
    "--prune", is_flag=True, help="delete each file fetched of a GGUF repository before the next is fetched"
)
@run_options
def bench(
    artifacts: tuple[str, ...],
    out: Path | None,
    prefill: int,
    decode: int,
    repetitions: int,
    rounds: int,
    depths: str,
    batches: str,
    attention: str,
    compiled: bool,
    load_as: str,
    prune: bool,
    run: RunOptions,
    as_json: bool,
) -> int:
    """Measure speed and memory of ARTIFACT...: artifact folders, .gguf files, Hugging Face folders or Hub
    ids, or files of a GGUF repository: org/name:Q4_K_M, or all of them, org/name:*.

    Each is opened in a fresh process. pp512 and tg128 mean what they mean to llama-bench; peak memory is that
    of the process.
    """
    from benchmarks.speed import Workload
    from benchmarks.speed import bench as do_bench
    from benchmarks.targets import find_target
    from quantize.results import EvalResult, results_path, write_results
    from quantize.sources.gguf_repository import expand
    from quantize.staging import claim_run

    names = [one for name in artifacts for one in expand(name)]
    if len(set(names)) < len(names):
        raise BadInput("bench: an artifact is listed twice; --rounds measures each several times")
    if prune and rounds > 1:
        raise BadInput(
            "bench: --rounds goes through all artifacts in turn, so none can be deleted before the next: "
            "drop --prune"
        )
    if out is not None:
        claim_run(out)
    workload = Workload(
        prefill,
        decode,
        repetitions,
        rounds,
        _numbers(depths, "--depth"),
        _numbers(batches, "--batch"),
        attention,
        compiled,
    )
    errors: list[Exception] = []
    rows: list[EvalResult] = []
    for together in [[name] for name in names] if prune else [names]:
        found = [find_target(name, load_as, run.trust_remote_code) for name in together]
        for _, _, typed in found:
            for note in typed.notes:
                log(f"{typed.name}: {note['what']} ({note['why']})")
        outcome = do_bench([target for target, _, _ in found], workload, run, log)
        for target, subject, typed in found:
            measured = outcome[target.name]
            if isinstance(measured, Exception):
                errors.append(measured)
            else:
                rows += measured
                if out is not None:
                    write_results(results_path(out, target.name, "bench"), subject, measured)
            if prune:
                typed.prune(log)
    _table(names, rows)
    if as_json:
        emit_json([row.to_json() for row in rows])
    if errors:
        raise errors[0]
    return 0


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise BadInput(f"{option} {text!r}: expected whole numbers separated by commas, e.g. 1,512") from None


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
        "load_ms": "load ms",
        "peak_memory_bytes": "peak MB",
        "size_bytes": "disk MB",
        "ttft_ms": "first token ms",
    }
    return names.get(metric, f"{protocol} tokens/s")


def _cell(row) -> str:  # type: ignore[no-untyped-def]
    if row is None or row.value is None:
        return "-"
    scale = 1e-6 if row.unit == "bytes" else 1.0
    value = f"{row.value * scale:,.1f}"
    if row.metric in ("pp_tokens_per_s", "tg_tokens_per_s") and row.n > 1:
        value += f" ± {(row.detail['max'] - row.detail['min']) / 2:,.1f}"
    return value
