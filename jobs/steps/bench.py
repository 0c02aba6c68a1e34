"""The step that measures speed and memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.options import BenchOptions
from jobs.machine import run_arguments, run_inputs
from jobs.models import OpenModel
from jobs.spec import Job
from jobs.steps.measure import MeasureStep, runtime_packages
from jobs.steps.step import Step
from quantize.conversion import require
from quantize.recipe import Recipe
from quantize.results import results_path


@dataclass(frozen=True, eq=False, kw_only=True)
class BenchStep(MeasureStep):
    kind: ClassVar[str] = "bench"
    alone: ClassVar[bool] = True
    timed: ClassVar[bool] = True


def bench_step(job: Job, model: OpenModel, recipe: Recipe | None, after: Sequence[Step]) -> BenchStep:
    benchmark = job.benchmark
    assert benchmark is not None
    name = model.artifact_name(recipe) if recipe else model.id
    in_torch = not (recipe and require(recipe).runtime == "llamacpp")
    options = BenchOptions.of(**benchmark.model_dump() | {"compile": benchmark.compile and in_torch})
    return BenchStep(
        arguments=("bench", name, *options.arguments(), *run_arguments(job, model), "--json"),
        output=results_path(Path(), name, "bench"),
        name=name,
        model=model,
        recipe=recipe,
        after=tuple(after),
        inputs={**benchmark.model_dump(), **run_inputs(job)},
        sources=() if recipe else model.sources,
        packages=runtime_packages(recipe),
    )
