"""``quantwright check``."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from jobs.load import load_job
from jobs.plan import build_plan
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import QuantwrightError, StepFailed
from quantize.methods.registry import parse_recipe, plan, presets, split_recipes
from quantize.recipe import Recipe
from quantize.sources.opening import open_checkpoint
from quantize.terminal import console, emit_json, log
from quantize.verification.logits import why_not_full


@click.command()
@click.argument("target")
@click.option("--to", "recipes", help="recipes to check, separated by commas (default: every short spelling)")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="accept a checkpoint whose architecture is defined by its own code",
)
@click.option("--strict", is_flag=True, help="exit code 2 if one of them cannot be made")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def check(target: str, recipes: str | None, trust_remote_code: bool, strict: bool, as_json: bool) -> int:
    """Say which recipes work for TARGET, a model or a job file, and why others do not. Reads headers only."""
    rows = (
        _check_job(Path(target))
        if target.endswith((".yaml", ".yml"))
        else _check_model(target, recipes, trust_remote_code)
    )

    table = Table("model", "recipe", "possible", "why not", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            Text(row["model"]), row["recipe"], "yes" if row["possible"] else "no", Text(row["reason"])
        )
    console(width=200).print(table)
    for model, why in {row["model"]: row["why_lower"] for row in rows if row.get("why_lower")}.items():
        log_lower(model, why)
    for model, chosen in dict.fromkeys((row["model"], row.get("chosen", "")) for row in rows):
        if chosen:
            log(f"note: {model}: {chosen}")
    if as_json:
        emit_json(rows)
    if any(row["failed"] for row in rows):
        return 1
    return 2 if strict and not all(row["possible"] for row in rows) else 0


def log_lower(model: str, why: str) -> None:
    log(
        f"note: {model}: verification can reach `tensors` only "
        f"({why}); convert needs --allow-lower-verification for it"
    )


def _check_model(model: str, recipes: str | None, trust_remote_code: bool) -> list[dict[str, Any]]:
    checkpoint = open_checkpoint(model, trust_remote_code=trust_remote_code)
    if quantized := checkpoint.quantized:
        log(
            f"note: {model}: its tensors are already quantized "
            f"({quantized}), so any conversion but to the same grid rounds them twice"
        )
    parsed = [parse_recipe(text) for text in (split_recipes(recipes) if recipes else presets())]
    return [_check_one(checkpoint, recipe) for recipe in parsed]


def _check_one(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    reason = lower = chosen = ""
    failed = False
    try:
        chosen = plan(checkpoint, recipe).chosen
        lower = why_not_full(checkpoint)
    except QuantwrightError as error:
        reason = str(error).removeprefix(f"{checkpoint.source}: ")
        failed = isinstance(error, StepFailed)
    row = {"model": checkpoint.source, "recipe": recipe.short, "possible": not reason, "reason": reason}
    return {
        **row,
        "failed": failed,
        "verification": "tensors" if lower else "full",
        "why_lower": lower,
        "chosen": chosen,
    }


def _check_job(path: Path) -> list[dict[str, Any]]:
    plan = build_plan(load_job(path), path.absolute().parent)
    possible = [
        {
            "model": step.model.label,
            "recipe": step.recipe.short,
            "possible": True,
            "reason": "",
            "failed": False,
        }
        for step in plan.conversions
    ]
    return possible + [
        {
            "model": row.model,
            "recipe": row.recipe,
            "possible": False,
            "reason": row.reason,
            "failed": row.status == "failed",
        }
        for row in plan.rows
    ]
