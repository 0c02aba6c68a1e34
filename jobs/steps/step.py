"""A step of a job: one command line of this program, with what it needs and what it leaves behind. What
differs from kind to kind is said by the kind's class."""

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.costs import Experience, StepCost
from jobs.models import OpenModel
from jobs.sharing import Share
from jobs.spec import Job
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.methods.base import Costs
from quantize.methods.registry import method as find_method
from quantize.recipe import Recipe

LIGHT_BYTES = 200 << 20  # of a process that reads results and little else


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(ABC):
    """``arguments`` are those of ``quantwright``, run with the run folder as working directory; ``output`` is
    relative to it.

    ``after``: steps that must have ended well before; ``prefers``: steps that only go first where they can.
    ``inputs`` (JSON), ``files`` (contents), ``sources``, the outputs of ``after`` and the versions of
    ``packages`` make its key. ``run`` in methods: the run folder, absolute; ``stage``: the step's own
    folder in it, from which its results are moved into place when it has succeeded.
    """

    kind: ClassVar[str]  # as records, keys and the plan's JSON spell it
    # others would spoil its numbers: nothing else of this machine runs beside it
    alone: ClassVar[bool] = False
    # measures speeds, which compare where all of a model's come from one machine
    timed: ClassVar[bool] = False
    light: ClassVar[bool] = False  # reads the whole run folder, and needs little else

    arguments: tuple[str, ...]
    output: Path
    name: str = ""  # the artifact or model as results name it
    after: "tuple[Step, ...]" = ()
    prefers: "tuple[Step, ...]" = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    sources: tuple[Checkpoint, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    @abstractmethod
    def id(self) -> str:
        """Kind, model and recipe, joined by colons."""

    @property
    def slug(self) -> str:
        return slug(self.id)

    @property
    def title(self) -> str:
        return title(self.id)

    def command(self, run: Path, stage: Path) -> list[str]:
        """The arguments with which it is started."""
        return list(self.arguments)

    @property
    def reading(self) -> Hashable | None:
        """Equal for steps that one process makes from a single reading of the model; None: it has its own."""
        return None

    def beside(self, run: Path, others: "Sequence[Step]") -> list[str]:
        """Arguments to add, so that its process makes the outputs of ``others``, too, each put in place when
        it is whole. They have its ``reading``."""
        return []

    # -- its output

    def digest(self, run: Path) -> str | None:
        """Of what lies at the output's place, or None where that is not a whole output."""
        try:
            return self._digest(run)
        except (BadInput, OSError):
            return None

    @abstractmethod
    def _digest(self, run: Path) -> str | None:
        """``digest``. Errors: BadInput, OSError where something else than a whole output lies there."""

    def staged(self, stage: Path) -> bool:
        """Whether a whole result waits in ``stage`` to be moved into place."""
        return False

    def place(self, run: Path, stage: Path) -> bool:
        """Move the result from ``stage`` into place; False where there is none. By default the step's own
        process has put it there."""
        return True

    def took(self, run: Path, seconds: float, peak_bytes: int) -> None:  # noqa: B027 - most need not know
        """Told once it is done, what the process of this step alone has taken."""

    def adopt(self, run: Path) -> str | None:
        """Take what lies at the output's place for this step's, with what belongs beside it; its digest."""
        return self.digest(run)

    def commit(self, run: Path, stage: Path) -> str | None:
        """The digest of what the step has made, in place now; None where it has made nothing."""
        return self.adopt(run) if self.place(run, stage) else None

    def size_bytes(self, run: Path) -> int | None:
        """Of an artifact's files, without the manifest; None for anything else."""
        return None

    def detail(self, stage: Path) -> dict[str, Any]:
        """What of its stdout its record keeps."""
        return {}

    def fail(self, run: Path, reason: str) -> None:  # noqa: B027 - the report and repositories have no row
        """Leave a row that says so where the results would be."""

    def sweep(self, run: Path) -> None:  # noqa: B027 - most leave nothing
        """Remove what it left beside its output when it was killed."""

    def cost(self, job: Job, experience: Experience) -> StepCost:
        """What it will take. By default that of reading results."""
        time = experience.time(self.kind, 1.0)
        return StepCost(self.id, self.kind, None, 0, LIGHT_BYTES, time, 1.0, self.kind)

    # -- between machines and runs

    def share(self, cache: SharedCache | BucketCache, run: Path) -> Share | None:
        """How what it makes goes through a cache shared with other runs; None: it does not."""
        return None

    def carried(self, run: Path) -> dict[str, str]:
        """Files of the run folder that it reads -> sha256, for a node that does not see that folder."""
        return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelStep(Step):
    """A step of one model: of what a recipe makes of it, or without one of the model itself."""

    model: OpenModel
    recipe: Recipe | None = None

    @property
    def method(self) -> str:
        return self.recipe.method if self.recipe else "dense"

    @property
    def costs(self) -> Costs:
        """Of the method that makes what the step reads or writes."""
        method = find_method(self.method)
        return method.costs_of(self.recipe) if self.recipe else method.costs

    @property
    def checkpoint(self) -> Checkpoint:
        assert self.model.checkpoint is not None, "steps are planned of models that could be opened"
        return self.model.checkpoint

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.model.name}:{self.recipe.slug if self.recipe else 'reference'}"


def printed(stage: Path) -> dict[str, Any] | None:
    """The JSON document on the last line of a step's stdout."""
    try:
        lines = (stage / "stdout").read_text(encoding="utf-8").splitlines()
        document = json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def slug(step: str) -> str:
    """A step's id as the name of its files."""
    return step.replace(":", ".")


def title(step: str) -> str:
    """A step's id for people."""
    return step.replace(":", " ")
