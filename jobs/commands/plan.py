"""``quantwright plan``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from jobs.commands.check import log_lower
from jobs.commands.run import job_name
from jobs.estimate import PlanCost, estimate_plan, refuse_what_cannot_fit
from jobs.load import job_of, load_job
from jobs.plan import Plan, build_plan
from jobs.spec import Job
from quantize.errors import BadInput
from quantize.methods.registry import split_recipes
from quantize.terminal import console, emit_json, say
from quantize.units import spell_size, spell_time
from quantize.verification.logits import why_not_full


@click.command()
@click.argument("target")
@click.option("--to", "recipes", help="recipes for a MODEL, separated by commas")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="run folder that the job would use"
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a key of the job file")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def plan(
    target: str, recipes: str | None, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> int:
    """Estimate what TARGET, a job file or a model, will cost: output sizes, disk, memory and time. Reads
    headers only."""
    spec, base, name = _target(target, recipes, overrides)
    folder = out or Path("runs") / name
    made = build_plan(spec, base)
    cost = estimate_plan(spec, made, folder)
    _print_plan(made, cost)
    if spec.verify == "full":
        for model in made.models:
            if model.checkpoint is not None and made.conversions and (why := why_not_full(model.checkpoint)):
                log_lower(model.label, why)
    if as_json:
        emit_json(_plan_document(made, cost))
    refuse_what_cannot_fit(cost, folder)
    return int(any(row.status == "failed" for row in made.rows))


def _target(target: str, recipes: str | None, overrides: tuple[str, ...]) -> tuple[Job, Path, str]:
    """-> (job, the folder that its paths are relative to, a name for its run folder)."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        if recipes:
            raise BadInput(
                "--to is for a model; a job file names its own recipes (or use --set recipes=[...])"
            )
        return load_job(path, overrides), path.absolute().parent, job_name(path)

    if not recipes:
        raise BadInput(f"{target}: give --to RECIPE[,RECIPE...] or a job file (.yaml)")
    return (
        job_of({"models": [target], "recipes": split_recipes(recipes), "report": False}),
        Path.cwd(),
        path.name,
    )


def _print_plan(plan: Plan, cost: PlanCost) -> None:

    table = Table("step", "output", "peak memory", "time", "known from", box=None, pad_edge=False)
    for step in plan.steps:
        its = cost.steps[step.id]
        size = (
            spell_size(its.size_bytes)
            if its.size_bytes
            else spell_size(its.cache_bytes) + " cache"
            if its.cache_bytes
            else "-"
        )
        time = f"{spell_time(its.time.low_s)} to {spell_time(its.time.high_s)}"
        table.add_row(step.title, size, spell_size(its.memory_bytes), time, its.time.source)
    console().print(table)
    for step in plan.conversions:
        if step.chosen:
            say(f"{step.title}: {step.chosen}")
    for row in plan.rows:
        say(f"{row.status}: {row.reason}")
    say(
        f"disk: {spell_size(cost.disk_bytes)} at the peak, {spell_size(cost.free_bytes)} free; "
        f"memory: {spell_size(cost.memory_bytes)} of {spell_size(cost.available_bytes)}; time: "
        f"{spell_time(cost.low_s)} to {spell_time(cost.high_s)}, one step after another"
    )


def _plan_document(plan: Plan, cost: PlanCost) -> dict[str, Any]:

    return {
        "steps": [asdict(cost.steps[step.id]) for step in plan.steps],
        "rows": [asdict(row) for row in plan.rows],
        "chosen": {step.id: step.chosen for step in plan.conversions if step.chosen},
        "disk_bytes": cost.disk_bytes,
        "free_bytes": cost.free_bytes,
        "memory_bytes": cost.memory_bytes,
        "low_s": cost.low_s,
        "high_s": cost.high_s,
    }
