"""The step that measures speed and memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.options import BenchOptions
from jobs.costs import Experience, StepCost
from jobs.machine import run_arguments, run_inputs
from jobs.memory import serving_memory
from jobs.models import OpenModel
from jobs.spec import Job
from jobs.steps.convert import ConvertStep
from jobs.steps.measure import MeasureStep, runtime_packages
from quantize.methods.registry import require
from quantize.results import results_path


@dataclass(frozen=True, eq=False, kw_only=True)
class BenchStep(MeasureStep):
    kind: ClassVar[str] = "bench"
    alone: ClassVar[bool] = True
    timed: ClassVar[bool] = True

    def cost(self, job: Job, experience: Experience) -> StepCost:
        rate_kind, work = f"bench:{self.method}", self.checkpoint.parameters / 1e6
        memory = experience.peak_bytes(rate_kind, work) or serving_memory(self.costs, self.held_bytes())
        time = experience.time(rate_kind, work)
        return StepCost(self.id, self.kind, None, 0, memory, time, work, rate_kind)


def bench_step(job: Job, model: OpenModel, made: ConvertStep | None) -> BenchStep:
    """``made``: the step that makes what is measured; None for the model itself."""
    benchmark, recipe = job.benchmark, made.recipe if made else None
    assert benchmark is not None
    name = model.artifact_name(recipe) if recipe else model.id
    in_torch = not (recipe and require(recipe).format.runtime == "llamacpp")
    asked = benchmark.model_dump()
    mine = {"compile": benchmark.compile and in_torch, "runtime": benchmark.runtime if in_torch else None}
    options = BenchOptions.of(**asked | mine)
    if benchmark.runtime is None:
        del asked["runtime"]  # as keys were before there was a choice
    return BenchStep(
        arguments=("bench", name, *options.arguments(), *run_arguments(job, model), "--json"),
        output=results_path(Path(), name, "bench"),
        name=name,
        model=model,
        recipe=recipe,
        made=made,
        after=(made,) if made else (),
        inputs={**asked, **run_inputs(job)},
        sources=() if recipe else model.sources,
        packages=runtime_packages(recipe),
    )
