"""Steps as processes of this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from jobs.child import Child
from jobs.costs import StepCost
from jobs.executor import Executor, Handle
from jobs.machine import step_threads
from jobs.spec import Job
from jobs.steps.step import Step


class Here(Executor):
    def __init__(self, job: Job, run: Path, costs: Mapping[str, StepCost]):
        super().__init__(job, run, costs)
        self.memory_bytes = min(int(psutil.virtual_memory().available), self.memory_limit or 1 << 62)

    @property
    def shares_readings(self) -> bool:
        """Where steps run side by side, each gets its own reading, and its own cores."""
        return (self.job.resources.parallel or 1) == 1

    def fits(self, step: Step, running: Sequence[Step], waiting: Sequence[Step]) -> bool:
        """Benchmarks and the report run with nothing beside them; others as many at a time as the job allows
        and memory holds."""
        if not running:
            return True
        if len(running) >= (self.job.resources.parallel or 1) or any(
            other.alone for other in (step, *running)
        ):
            return False
        together = [step.id, *(other.id for other in running)]
        return (
            sum(self.costs[name].memory_bytes for name in together if name in self.costs) <= self.memory_bytes
        )

    def start(
        self, step: Step, arguments: Sequence[str], stage: Path, log: Path, keep_open: Sequence[int]
    ) -> Child:
        return Child(arguments, self.run, log, stage / "stdout", keep_open, step_threads(self.job))

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> None:
        children = [handle for handle in handles if isinstance(handle, Child)]
        Child.wait(children, timeout_s)
        for child in children:
            if child.poll() is None:
                child.enforce(self.memory_limit, self.seconds_limit)
