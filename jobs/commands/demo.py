"""``quantwright demo``: the whole program on the embedded checkpoint."""

from pathlib import Path

import click

import demo as package
from jobs.commands.outcome import print_outcome, report_document
from jobs.commands.run import run_job
from quantize.errors import BadInput
from quantize.terminal import emit_json, log


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="run folder; run again with the same folder to do only what is missing",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="override a key of demo/job.yaml, e.g. evaluate.tokens=5000",
)
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def demo(out: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Convert the embedded checkpoint by every method, verify, measure and compare; print the table and the
    report's path."""
    job = demo_folder() / "job.yaml"
    if not job.is_file():
        raise BadInput(f"{job}: missing; install quantwright again")
    log(
        "The embedded checkpoint goes through every family of "
        "quantization. This takes about ten minutes on two cores."
    )
    summary = run_job(job, out, overrides)
    document = report_document(out, summary)
    print_outcome(summary, document)
    if as_json:
        emit_json(document)
    return summary.exit_code


def demo_folder() -> Path:
    """Where the demo's job and checkpoint lie: beside the package, in a checkout and in an installation
    alike."""
    return Path(package.__file__).resolve().parent
