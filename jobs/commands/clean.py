"""``quantwright clean``."""

import shutil
from pathlib import Path

import click

from jobs.folder import read_jobs, size_bytes, unused
from jobs.records import RunLock
from quantize.errors import BadInput
from quantize.terminal import log, say
from quantize.units import spell_size


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def clean(run: Path, yes: bool) -> int:
    """Delete from the run folder RUN what no job refers to any more: artifacts, results, logs, leftovers.
    Asks first."""
    if not read_jobs(run):
        raise BadInput(f"{run}: not the run folder of a job, so its unused files are unknown")
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
