"""What a plan will cost, before anything is spent: output sizes, disk at the peak, memory, time. Reads
headers only."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from jobs.costs import Experience, StepCost
from jobs.machine import step_threads
from jobs.plan import Plan
from jobs.rates import Sample, read_samples
from jobs.spec import Job
from jobs.steps.step import title
from quantize.errors import BadInput
from quantize.units import parse_size, spell_size


@dataclass
class PlanCost:
    steps: dict[str, StepCost] = field(default_factory=dict)
    disk_bytes: int = 0
    free_bytes: int = 0
    memory_bytes: int = 0
    available_bytes: int = 0

    @property
    def low_s(self) -> float:
        return sum(cost.time.low_s for cost in self.steps.values())

    @property
    def high_s(self) -> float:
        return sum(cost.time.high_s for cost in self.steps.values())


def estimate_plan(job: Job, plan: Plan, run: Path, samples: list[Sample] | None = None) -> PlanCost:
    """``run``: the run folder, which need not exist."""
    limit = parse_size(job.resources.memory) if job.resources.memory else None
    cost = PlanCost(available_bytes=limit or int(psutil.virtual_memory().total))
    known = read_samples() if samples is None else samples
    experience = Experience(known, step_threads(job), cost.available_bytes)
    cost.steps = {step.id: step.cost(job, experience) for step in plan.steps}
    # An output is staged beside its place and renamed, so it is never on disk twice; what else a step writes
    # goes when it ends.
    together = sorted((c.scratch_bytes for c in cost.steps.values()), reverse=True)[
        : job.resources.parallel or 1
    ]
    cost.disk_bytes = sum((c.size_bytes or 0) + c.cache_bytes for c in cost.steps.values()) + sum(together)
    existing = next(path for path in [run.absolute(), *run.absolute().parents] if path.exists())
    cost.free_bytes = shutil.disk_usage(existing).free + _already(run, plan)
    cost.memory_bytes = max((c.memory_bytes for c in cost.steps.values()), default=0)
    return cost


def refuse_what_cannot_fit(cost: PlanCost, run: Path, memory: bool = True) -> None:
    """``memory``: whether steps run on this machine. Errors: BadInput, before any work, where disk or memory
    are too small."""
    if cost.disk_bytes > cost.free_bytes:
        raise BadInput(
            f"{run}: the job needs {spell_size(cost.disk_bytes)} of disk, but "
            f"{spell_size(cost.free_bytes)} are free; free some, choose another -o, or remove recipes"
        )
    for step in cost.steps.values() if memory else ():
        if step.memory_bytes > cost.available_bytes:
            raise BadInput(
                f"{title(step.id)} needs about {spell_size(step.memory_bytes)} "
                f"of memory, but {spell_size(cost.available_bytes)} are allowed "
                "or installed; raise resources.memory, or remove this recipe"
            )


def _already(run: Path, plan: Plan) -> int:
    """Bytes that an earlier run of the same job has put there: they are part of what the job needs."""
    folders = [run / step.output for step in plan.conversions] + [run / "cache"]
    return sum(
        path.stat().st_size
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.is_file()
    )
