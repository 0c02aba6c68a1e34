"""``quantwright status``."""

import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.folder import StepState, is_running, states
from quantize.terminal import console, emit_json
from quantize.units import spell_size, spell_time


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--once", is_flag=True, help="print the table once, also on a terminal")
@click.option("--planned", is_flag=True, help="show the planned value beside each figure")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def status(run: Path, once: bool, planned: bool, as_json: bool) -> None:
    """Show the progress of the jobs in the run folder RUN; on a terminal the table updates until they end."""
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


def _table(found: list[StepState], runner: int | None) -> Table:

    counts: dict[str, int] = {}
    for state in found:
        counts[state.status] = counts.get(state.status, 0) + 1
    title = ", ".join(f"{number} {name}" for name, number in counts.items())
    title += f"; process {runner} is working" if runner else "; not running"
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


def _planned_table(found: list[StepState]) -> Table:
    """Plan against actual, for the steps that are done."""
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
