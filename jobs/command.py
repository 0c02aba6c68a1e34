"""``quantwright run``, ``plan`` and ``check``."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from quantize.errors import BadInput
from quantize.methods.registry import parse_recipe, presets, split_recipes
from quantize.terminal import console, emit_json, log, say
from quantize.units import spell_size, spell_time


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="run folder (default: runs/<name of the job>)",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="override a key of the job file, e.g. evaluate.limit=20000",
)
@click.option("--strict", is_flag=True, help="stop before anything runs if a combination cannot be made")
@click.option(
    "--cache",
    metavar="FOLDER|URL",
    envvar="QUANTWRIGHT_CACHE",
    help="shared with other runs and users (also s3://...): the "
    "others copy what one has made  [default: the job's cache:]",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="where steps run: on this machine, or on Ray",
)
@click.option(
    "--address", help="Ray cluster: host:port or auto  [default: $RAY_ADDRESS, else one is started here]"
)
@click.option(
    "--store",
    metavar="URL",
    help="s3://... that carries files to Ray nodes that do not "
    "see the run folder  [default: the job's resources.store]",
)
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def run(
    job: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    strict: bool,
    cache: str | None,
    executor: str,
    address: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Run a JOB file (YAML): every model by every recipe, evaluated, benchmarked and reported.

    Each step runs in its own process. Run the same command again to do only what is missing.
    """
    folder = out or Path("runs") / job_name(job)
    summary = run_job(job, folder, overrides, strict, executor, address, cache, store)
    document = report_document(folder, summary)
    print_outcome(summary, document)
    if as_json:
        emit_json(document)
    return int(summary.exit_code)


def run_job(
    path: Path,
    out: Path,
    overrides: tuple[str, ...] = (),
    strict: bool = False,
    executor: str = "local",
    address: str | None = None,
    cache: str | None = None,
    store: str | None = None,
) -> Any:
    """-> jobs.runner.Summary. Errors: BadInput, Unsupported (with ``strict``) before anything runs."""
    from jobs.estimate import estimate_plan, refuse_what_cannot_fit
    from jobs.load import load_job
    from jobs.opening import open_executor
    from jobs.plan import build_plan
    from jobs.runner import Runner
    from quantize.errors import Unsupported

    spec = load_job(path, overrides)
    plan = build_plan(spec, path.absolute().parent)
    refused = [row for row in plan.rows if row.status == "unsupported"]
    if strict and refused:
        for row in refused[1:]:
            log(f"quantwright: {row.reason}")
        raise Unsupported(f"{refused[0].reason} (--strict: nothing was run)")
    cost = estimate_plan(spec, plan, out)
    refuse_what_cannot_fit(cost, out, memory=executor == "local")
    shared = cache or (place_of(spec.cache, path.absolute().parent) if spec.cache else None)
    place = open_executor(executor, address, spec, plan, out.absolute(), cost.steps, store)
    log(f"{path}: {len(plan.steps)} steps, run folder {out}")
    terminal = Terminal()
    try:
        return Runner(path, spec, plan, out, terminal.say, terminal.show, cost.steps, place, shared).run()
    finally:
        terminal.show("")
        place.close()


def place_of(text: str, base: Path) -> str:
    """A URL as it is, a folder relative to ``base``."""
    from jobs.bucket import is_url

    return text if is_url(text) else str(base / text)


class Terminal:
    """stderr: lines that stay, and on a terminal below them one that says what is going on."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def say(self, message: str) -> None:
        self.show("")
        log(message)

    def show(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
            sys.stderr.flush()


def job_name(path: Path) -> str:
    """``demo/job.yaml`` -> demo, ``examples/overnight.yaml`` -> overnight."""
    return path.absolute().parent.name if path.stem == "job" else path.stem


def report_document(run_folder: Path, summary: Any) -> dict[str, Any]:
    """``{"report": path, "rows": [...]}`` as the report step printed it, now or when it last ran; the path
    made absolute."""
    from jobs.records import Records

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
    from rich.table import Table

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
    log(told + ("; interrupted: the same command goes on from here" if summary.interrupted else ""))
    if document["report"]:
        say(f"report: {document['report']}")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "size_bytes":
        return f"{value / 1e6:.1f}"
    if key in ("top1_agreement", "task_accuracy"):
        return f"{100 * value:.1f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


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
    from jobs.estimate import estimate_plan, refuse_what_cannot_fit
    from jobs.plan import build_plan

    spec, base, name = _target(target, recipes, overrides)
    folder = out or Path("runs") / name
    made = build_plan(spec, base)
    cost = estimate_plan(spec, made, folder)
    _print_plan(made, cost)
    if spec.verify == "full":
        from quantize.verification.logits import why_not_full

        for model in made.models:
            if model.checkpoint is not None and made.recipes and (why := why_not_full(model.checkpoint)):
                _log_lower(model.label, why)
    if as_json:
        emit_json(_plan_document(made, cost))
    refuse_what_cannot_fit(cost, folder)
    return 0


def _target(target: str, recipes: str | None, overrides: tuple[str, ...]) -> tuple[Any, Path, str]:
    """-> (job, the folder that its paths are relative to, a name for its run folder)."""
    from jobs.load import job_of, load_job

    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        if recipes:
            raise BadInput(
                "--to is for a model; a job file names its own recipes (or use --set recipes=[...])"
            )
        return load_job(path, overrides), path.absolute().parent, job_name(path)

    if not recipes:
        raise BadInput(f"{target}: give --to RECIPE[,RECIPE...], or a job file (.yaml)")
    return (
        job_of({"models": [target], "recipes": split_recipes(recipes), "report": False}),
        Path.cwd(),
        path.name,
    )


def _print_plan(plan: Any, cost: Any) -> None:
    from rich.table import Table

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
    for row in plan.rows:
        say(f"{row.status}: {row.reason}")
    say(
        f"disk: {spell_size(cost.disk_bytes)} at the worst moment, {spell_size(cost.free_bytes)} free; "
        f"memory: {spell_size(cost.memory_bytes)} of {spell_size(cost.available_bytes)}; "
        f"time: {spell_time(cost.low_s)} to {spell_time(cost.high_s)}, one step after another"
    )


def _plan_document(plan: Any, cost: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "steps": [asdict(cost.steps[step.id]) for step in plan.steps],
        "rows": [asdict(row) for row in plan.rows],
        "disk_bytes": cost.disk_bytes,
        "free_bytes": cost.free_bytes,
        "memory_bytes": cost.memory_bytes,
        "low_s": cost.low_s,
        "high_s": cost.high_s,
    }


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
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "recipe", "possible", "why not", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            Text(row["model"]), row["recipe"], "yes" if row["possible"] else "no", Text(row["reason"])
        )
    console(width=200).print(table)
    for model, why in {row["model"]: row["why_lower"] for row in rows if row.get("why_lower")}.items():
        _log_lower(model, why)
    if as_json:
        emit_json(rows)
    return 2 if strict and not all(row["possible"] for row in rows) else 0


def _log_lower(model: str, why: str) -> None:
    log(
        f"note: {model}: verification can reach `tensors` only ({why}); convert wants "
        "--allow-lower-verification for it"
    )


def _check_model(model: str, recipes: str | None, trust_remote_code: bool) -> list[dict[str, Any]]:
    from quantize.sources.opening import open_checkpoint

    checkpoint = open_checkpoint(model, trust_remote_code=trust_remote_code)
    if quantized := checkpoint.quantized:
        log(
            f"note: {model}: its tensors are quantized already ({quantized}), so that whatever is made of "
            "them is rounded twice"
        )
    parsed = [parse_recipe(text) for text in (split_recipes(recipes) if recipes else presets())]
    return [_check_one(checkpoint, recipe) for recipe in parsed]


def _check_one(checkpoint: Any, recipe: Any) -> dict[str, Any]:
    from quantize.conversion import check as check_method
    from quantize.conversion import require
    from quantize.errors import QuantwrightError
    from quantize.verification.logits import why_not_full

    reason = lower = ""
    try:
        check_method(require(recipe), checkpoint, recipe)
        lower = why_not_full(checkpoint)
    except QuantwrightError as error:
        reason = str(error).removeprefix(f"{checkpoint.source}: ")
    row = {"model": checkpoint.source, "recipe": recipe.short, "possible": not reason, "reason": reason}
    return {**row, "verification": "tensors" if lower else "full", "why_lower": lower}


def _check_job(path: Path) -> list[dict[str, Any]]:
    from jobs.load import load_job
    from jobs.plan import build_plan

    plan = build_plan(load_job(path), path.absolute().parent)
    possible = [
        {"model": step.model.label, "recipe": step.recipe.short, "possible": True, "reason": ""}
        for step in plan.conversions
    ]
    return possible + [
        {"model": r.model, "recipe": r.recipe, "possible": False, "reason": r.reason} for r in plan.rows
    ]
