"""Where steps run: ``Here``, on this machine; or on the nodes of a Ray cluster (``jobs.on_ray``)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jobs.child import Child
from jobs.estimate import StepCost
from jobs.spec import Job
from jobs.steps import Step, step_threads
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.units import parse_size

#: Steps whose numbers others would spoil: nothing else runs beside them.
ALONE = ("bench", "report")


class Handle(Protocol):
    """A step that was started. ``killed_for``: why we stopped it. ``lost``: where it ran is gone, so it may
    run elsewhere."""

    peak_rss_bytes: int
    killed_for: str
    lost: str
    node: str
    log: Path

    @property
    def pid(self) -> int: ...

    @property
    def wall_s(self) -> float: ...

    @property
    def started(self) -> bool: ...

    def poll(self) -> int | None: ...

    def kill(self, why: str) -> None: ...


class Executor(ABC):
    """``run``: the run folder, absolute. ``costs``: step id -> what the plan says it takes."""

    def __init__(self, job: Job, run: Path, costs: Mapping[str, StepCost]):
        self.job, self.run, self.costs = job, run, costs
        self.memory_limit = memory_limit(job)
        minutes = job.resources.time_limit_minutes
        self.seconds_limit = minutes * 60 if minutes else None

    @abstractmethod
    def fits(self, step: Step, running: Sequence[Step], waiting: Sequence[Step]) -> bool:
        """Whether ``step`` may start beside those ``running``; ``waiting``: all that have not started."""

    @abstractmethod
    def start(
        self, step: Step, arguments: Sequence[str], stage: Path, log: Path, keep_open: Sequence[int]
    ) -> Handle:
        """``keep_open``: file descriptors that must stay open as long as a step of this machine lives."""

    @abstractmethod
    def wait(self, handles: Sequence[Handle], timeout_s: float) -> None:
        """Until one of them has ended, or the timeout; keeps them to their limits."""

    def close(self) -> None:  # noqa: B027 - nothing to do where nothing was started
        pass


class Here(Executor):
    """Processes of this machine."""

    def __init__(self, job: Job, run: Path, costs: Mapping[str, StepCost]):
        import psutil

        super().__init__(job, run, costs)
        self.memory_bytes = min(int(psutil.virtual_memory().available), self.memory_limit or 1 << 62)

    def fits(self, step: Step, running: Sequence[Step], waiting: Sequence[Step]) -> bool:
        """Benchmarks and the report run alone; others as many at a time as the job allows and memory
        holds."""
        if not running:
            return True
        if len(running) >= (self.job.resources.parallel or 1) or any(
            other.kind in ALONE for other in (step, *running)
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


def memory_limit(job: Job) -> int | None:
    return parse_size(job.resources.memory) if job.resources.memory else None


def open_executor(
    name: str,
    address: str | None,
    job: Job,
    run: Path,
    costs: Mapping[str, StepCost],
    store: str | None = None,
    sources: Mapping[str, Checkpoint] | None = None,
) -> Executor:
    """``name``: local or ray; the others are of ray only. Errors: BadInput where the cluster or the store
    cannot be reached, or no node can hold the steps."""
    if name == "ray":
        from jobs.on_ray import OnRay

        return OnRay(job, run, costs, address, store or job.resources.store, sources)
    for option, given in (("--address", address), ("--store", store)):
        if given:
            raise BadInput(
                f"{option}: is for steps on a Ray cluster; give --executor ray too, or leave it out"
            )
    return Here(job, run, costs)
