"""``quantwright status``, ``clean`` and ``init``."""

from pathlib import Path
from typing import Any

import click

from quantize.errors import BadInput
from quantize.terminal import console, emit_json, log, say
from quantize.units import spell_size, spell_time

TEMPLATE = """\
# A job: every model by every recipe, evaluated, benchmarked and reported.
#   quantwright plan {name}      what it will cost
#   quantwright run {name}       do it; run it again and only what is missing is done
# Paths are relative to this file. A misspelled key is an error that names the line.

models:
  - path/to/checkpoint # a local folder, or a Hub id
  # - source: org/name
  #   revision: main # pinned to a commit in the manifest
  #   skip: [awq-int4] # recipes that this model leaves out
  #   recipes: [gguf-q4_k_m] # or recipes of its own, in place of those below
  #   adapters: [my-lora] # PEFT LoRAs: each, merged, is a model of its own in place of the bare source

# `quantwright methods` lists the short spellings; `quantwright check MODEL` says which a model can take.
recipes:
  - gguf-q4_k_m
  - gptq-int4
  # - gptq:bits=3,group_size=64
  # - {{method: gptq, matrix: {{bits: [3, 4], group_size: [64, 128]}}}} # every combination

# calibration: {{source: calibration.txt, tokens: 32768, sequence_length: 512, seed: 0}} # default: built in
# verify: full # or tensors, none; allow_lower_verification: true where full cannot be reached

evaluate:
  text: held-out # a text file, or the built-in text
  limit: 20000 # tokens of it
  metrics: [perplexity, divergence]
  # protocol: llamacpp-512
  # tasks: [arc_easy, tasks/mine.jsonl]
  # task_limit: 200
  # num_fewshot: 5 # as each task says, where this is left out
  # apply_chat_template: true
  # allow_code_execution: true # for tasks that run what a model wrote, on this machine
  # allow_task_code: true # for YAML tasks that name Python (!function), or metrics that are scripts
  # prompts: prompts.txt # continued side by side in the report, by
  # generate: 64 # tokens
  # floors: false # without the rows below which no difference means anything
  # weights_only: full # a GGUF's weights in the reference's runtime: 1 chunk in 80 (sample), all, or none

benchmark: {{prefill: 512, decode: 128, repetitions: 5}}
# more of it: {{depths: [0, 4096], batches: [1, 8], attention: eager, compile: true, rounds: 2}}

# publish: {{repo: "user/{{model}}-{{format}}"}} # to RUN/published; with upload: true to the Hub
# cache: /shared/quantwright # what other runs and users have made already is copied from there
# resources: {{threads: 8, memory: 64GiB, parallel: 2, time_limit_minutes: 240}}
"""


@click.command()
@click.argument("job", type=click.Path(path_type=Path), default=Path("job.yaml"))
@click.option("--force", is_flag=True, help="replace the file that is there")
def init(job: Path, force: bool) -> None:
    """Write a commented JOB file to start from."""
    if job.exists() and not force:
        raise BadInput(f"{job}: already exists; choose another name, or pass --force to replace it")
    if not job.absolute().parent.is_dir():
        raise BadInput(f"{job.parent}: no such folder")
    job.write_text(TEMPLATE.format(name=job), encoding="utf-8")
    say(f"{job}: written; edit models and recipes, then: quantwright plan {job}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--once", is_flag=True, help="print the table once, also on a terminal")
@click.option("--planned", is_flag=True, help="show the planned value beside each figure")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def status(run: Path, once: bool, planned: bool, as_json: bool) -> None:
    """Show the progress of the jobs in the run folder RUN; on a terminal the table updates until they end."""
    import sys
    import time
    from dataclasses import asdict

    from rich.live import Live

    from jobs.folder import is_running, states

    found = states(run)
    out = console()
    if sys.stdout.isatty() and not (once or planned or as_json):
        with Live(_table(found, is_running(run)), console=out, refresh_per_second=2) as live:
            while (pid := is_running(run)) is not None:
                time.sleep(0.5)
                live.update(_table(states(run), pid))
            live.update(_table(states(run), None))
        return
    out.print(_planned_table(found) if planned else _table(found, is_running(run)))
    if as_json:
        emit_json({"runner": is_running(run), "steps": [asdict(state) for state in found]})


def _table(found: list[Any], runner: int | None) -> Any:
    from datetime import datetime, timezone

    from rich.table import Table
    from rich.text import Text

    counts: dict[str, int] = {}
    for state in found:
        counts[state.status] = counts.get(state.status, 0) + 1
    title = ", ".join(f"{number} {name}" for name, number in counts.items())
    title += f"; process {runner} is working" if runner else "; nobody is working on it"
    table = Table(
        "step",
        "status",
        "time",
        "peak memory",
        "remark",
        box=None,
        pad_edge=False,
        title=title,
        title_justify="left",
    )
    for state in found:
        seconds = state.wall_s
        if state.status == "running" and state.started_at:
            # A clock that was set back must not show as negative time.
            seconds = max(
                0.0, (datetime.now(timezone.utc) - datetime.fromisoformat(state.started_at)).total_seconds()
            )
        table.add_row(
            state.title,
            state.status,
            spell_time(seconds) if seconds else "",
            spell_size(state.peak_rss_bytes) if state.peak_rss_bytes else "",
            Text(state.reason or (state.log if state.status == "running" else "")),
        )
    return table


def _planned_table(found: list[Any]) -> Any:
    """Plan against actual, for the steps that are done."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("step", "size", "planned", "peak memory", "planned", "time", "planned"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for state in found:
        if state.status == "done" and state.planned:
            said = state.planned
            table.add_row(
                state.title,
                f"{state.size_bytes:,}" if state.size_bytes else "",
                f"{said['size_bytes']:,}" if said.get("size_bytes") else "",
                spell_size(state.peak_rss_bytes),
                spell_size(said["memory_bytes"]),
                spell_time(state.wall_s),
                f"{spell_time(said['low_s'])} to {spell_time(said['high_s'])}",
            )
    return table


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def clean(run: Path, yes: bool) -> int:
    """Delete from the run folder RUN what no job refers to any more: artifacts, results, logs, leftovers.
    Asks first."""
    import shutil

    from jobs.folder import read_jobs, size_bytes, unused
    from jobs.records import RunLock

    if not read_jobs(run):
        raise BadInput(f"{run}: not the run folder of a job, so nothing in it is known to be unused")
    with RunLock(run):
        paths = list(unused(run))
        for path in paths:
            say(f"{spell_size(size_bytes(path)):>12}  {path}")
        if not paths:
            say(f"{run}: nothing to remove")
            return 0
        total = spell_size(sum(size_bytes(path) for path in paths))
        if not yes and not click.confirm(f"remove these {len(paths)} ({total})?", default=False):
            log("nothing removed")
            return 0
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        say(f"removed {len(paths)}, {total}")
    return 0
