"""A run folder seen from outside: which jobs use it, how far they are, and what in it belongs to none of
them."""

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.plan import Plan
from jobs.records import LOCK, Records
from jobs.steps.step import slug, title
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.into_place import write_json
from quantize.results import STAGES, results_path

JOBS = "jobs.json"


class _Noted(BaseModel):
    steps: list[str]
    names: list[str]


#: job file -> its steps and names
_JOBS = TypeAdapter(dict[str, _Noted])


def register(run: Path, job: Path, plan: Plan) -> None:
    """Note that ``job`` uses this run folder, and what for. Called under the run's lock."""
    known = read_jobs(run)
    known[str(job.absolute())] = {
        "steps": [step.id for step in plan.steps],
        "names": sorted({step.name for step in plan.steps if step.name} | {row.name for row in plan.rows}),
    }
    write_json(run / JOBS, known)


def read_jobs(run: Path) -> dict[str, dict[str, list[str]]]:
    """Job file -> its steps and names; empty where nothing was noted."""
    try:
        return {
            job: noted.model_dump() for job, noted in _JOBS.validate_python(read_json(run / JOBS)).items()
        }
    except (BadInput, ValidationError):
        return {}


def is_running(run: Path) -> int | None:
    """Process id of the runner that works here, or None."""
    try:
        with open(run / LOCK, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0)
    except (OSError, ValueError):
        pass
    return None


@dataclass(frozen=True)
class StepState:
    """``status``: waiting, running, done, failed, or stopped (begun, and neither finished nor going on)."""

    id: str
    status: str
    wall_s: float
    peak_rss_bytes: int
    reason: str
    log: str
    started_at: str
    size_bytes: int | None = None
    planned: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return title(self.id)


def states(run: Path) -> list[StepState]:
    """Every step of the jobs that use the folder, in their order. Errors: BadInput where it is not a run
    folder."""
    jobs = read_jobs(run)
    if not jobs:
        raise BadInput(
            f"{run}: not the run folder of a job (no {JOBS}); `quantwright run job.yaml -o {run}` makes one"
        )
    running = is_running(run)
    records = {record.id: record for record in Records(run).all()}
    found = []
    for step in dict.fromkeys(step for job in jobs.values() for step in job["steps"]):
        record = records.get(step)
        if record is None:
            found.append(StepState(step, "waiting", 0.0, 0, "", "", ""))
            continue
        status = "stopped" if record.status == "running" and running is None else record.status
        found.append(
            StepState(
                step,
                status,
                record.wall_s,
                record.peak_rss_bytes,
                record.reason,
                record.log,
                record.started_at,
                record.size_bytes,
                record.planned,
            )
        )
    return found


def unused(run: Path) -> Iterator[Path]:
    """Files and folders that no job refers to whose file still exists: artifacts, results, records, logs,
    caches, leftovers."""
    jobs = {path: job for path, job in read_jobs(run).items() if Path(path).is_file()}
    names = {name for job in jobs.values() for name in job["names"]}
    steps = {slug(step) for job in jobs.values() for step in job["steps"]}
    results = {results_path(run, name, stage).name for name in names for stage in STAGES}
    for folder in sorted((run / "artifacts").glob("*/*")):
        if str(folder.relative_to(run)) not in names:
            yield folder
    for path in sorted((run / "results").glob("*.json")):
        if path.name not in results:
            yield path
    for path in sorted([*(run / "steps").glob("*.json"), *(run / "logs").glob("*.log")]):
        if path.stem not in steps:
            yield path
    yield from sorted(path for path in (run / ".work").glob("*"))
    if not jobs:
        yield from sorted((run / "cache").glob("*"))


def size_bytes(path: Path) -> int:
    files = (
        [path]
        if path.is_file()
        else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    )
    return sum(file.stat().st_size for file in files)
