"""Where steps run: here (``jobs.here``), or on the nodes of a Ray cluster (``jobs.on_ray``)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jobs.costs import StepCost
from jobs.spec import Job
from jobs.steps.step import Step
from quantize.units import parse_size


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

    @property
    def shares_readings(self) -> bool:
        """Whether a step's process may leave the outputs of others in the run folder, too."""
        return False

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


def memory_limit(job: Job) -> int | None:
    return parse_size(job.resources.memory) if job.resources.memory else None
