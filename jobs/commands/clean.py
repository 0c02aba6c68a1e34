"""``quantwright clean``."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from jobs.folder import read_jobs, size_bytes, unused
from jobs.records import RunLock
from quantize.calibration.kept import samples_files
from quantize.calibration.kept_moments import moments_files
from quantize.engines.native.parts import discard, work_folders
from quantize.errors import BadInput
from quantize.terminal import log, say
from quantize.units import spell_size


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def clean(run: Path | None, yes: bool) -> int:
    """Delete from the run folder RUN what no job refers to any more: artifacts, results, logs, leftovers.
    Without RUN: what interrupted conversions keep to go on from, and conversions for other recipes of the
    same model. Asks first."""
    if run is None:
        kept = [*work_folders(), *samples_files(), *moments_files()]
        _remove("conversions", kept, yes, lambda path: discard(path) if path.is_dir() else _delete(path))
        return 0
    if not read_jobs(run):
        raise BadInput(f"{run}: not the run folder of a job, so its unused files are unknown")
    with RunLock(run):
        _remove(str(run), list(unused(run)), yes, _delete)
    return 0


def _remove(where: str, paths: Sequence[Path], yes: bool, delete: Callable[[Path], None]) -> None:
    for path in paths:
        say(f"{spell_size(size_bytes(path)):>12}  {path}")
    if not paths:
        say(f"{where}: nothing to remove")
        return
    total = spell_size(sum(size_bytes(path) for path in paths))
    if not yes and not click.confirm(f"remove these {len(paths)} ({total})?", default=False):
        log("nothing removed")
        return
    for path in paths:
        delete(path)
    say(f"removed {len(paths)}, {total}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
