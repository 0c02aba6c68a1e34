"""``quantwright run``."""

import shutil
import sys
from pathlib import Path

import click

from jobs.bucket import is_url
from jobs.commands.outcome import print_outcome, report_document
from jobs.estimate import estimate_plan, refuse_what_cannot_fit
from jobs.load import load_job
from jobs.opening import open_executor
from jobs.plan import build_plan
from jobs.runner import Runner
from jobs.summary import Summary
from quantize.errors import Unsupported
from quantize.terminal import emit_json, log


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
    help="override a key of the job file, e.g. evaluate.tokens=20000",
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
    return summary.exit_code


def run_job(
    path: Path,
    out: Path,
    overrides: tuple[str, ...] = (),
    strict: bool = False,
    executor: str = "local",
    address: str | None = None,
    cache: str | None = None,
    store: str | None = None,
) -> Summary:
    """Errors: BadInput, Unsupported (with ``strict``) before anything runs."""
    spec = load_job(path, overrides)
    plan = build_plan(spec, path.absolute().parent)
    refused = [row for row in plan.rows if row.status == "unsupported"]
    if strict and refused:
        for row in refused[1:]:
            log(f"quantwright: {row.reason}")
        raise Unsupported(f"{refused[0].reason} (--strict: nothing ran)")
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
