"""What a job has to do: a list of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.models import OpenModel, open_models
from jobs.rows import Row
from jobs.spec import Job
from jobs.steps.bench import bench_step
from jobs.steps.convert import ConvertStep, convert_step
from jobs.steps.evaluate import eval_step
from jobs.steps.publish import publish_steps
from jobs.steps.report import report_step
from jobs.steps.step import Step
from jobs.texts import Texts
from quantize.errors import BadInput, QuantwrightError
from quantize.methods.base import Work
from quantize.methods.registry import plan as plan_recipe
from quantize.recipe import Recipe


@dataclass
class Plan:
    """``rows``: combinations that no step will make, and why."""

    steps: list[Step]
    models: list[OpenModel]
    rows: list[Row]

    @property
    def conversions(self) -> list[ConvertStep]:
        return [step for step in self.steps if isinstance(step, ConvertStep)]


def build_plan(job: Job, base: Path, models: list[OpenModel] | None = None) -> Plan:
    """``base``: the job file's folder. Runs every method's check on headers; nothing is converted.

    Errors: BadInput for a model, text or task that is not there, and for a job with nothing to do.
    """
    plan = Plan([], models if models is not None else open_models(job, base), [])
    texts = Texts(job, base)
    for model in plan.models:
        recipes = job.recipes_of(model.spec)
        # An adapter's model exists nowhere yet: what others are measured against is made first.
        if model.merged and (job.evaluate or job.benchmark):
            recipes = [model.merged, *[recipe for recipe in recipes if recipe.digest != model.merged.digest]]
        usable: list[Work[Any]] = []
        for recipe in recipes:
            work = _work(model, recipe)
            if isinstance(work, Row):
                plan.rows.append(work)
            else:
                usable.append(work)
        if model.checkpoint is not None:
            _add_model(plan, job, model, usable, texts)
    if not plan.steps and not plan.rows:
        raise BadInput("nothing to do: the job names no recipes, nothing to evaluate and no benchmark")
    if job.report:
        plan.steps.append(report_step(plan.steps))
    plan.steps += publish_steps(job, plan.steps)
    return plan


def _work(model: OpenModel, recipe: Recipe) -> Work[Any] | Row:
    """What the recipe will do to the model, or the row that says why it cannot."""

    def row(status: str, reason: str) -> Row:
        return Row(model.artifact_name(recipe), model.label, recipe.short, status, reason)

    if model.checkpoint is None:
        return row("failed", model.problem)
    try:
        return plan_recipe(model.checkpoint, recipe)
    except QuantwrightError as error:
        return row("unsupported", str(error))


def _add_model(plan: Plan, job: Job, model: OpenModel, works: Sequence[Work[Any]], texts: Texts) -> None:
    reference: list[Step] = []  # the evaluation of what the others are compared with
    merged: list[ConvertStep] = []  # what makes that, where it exists nowhere yet
    benches: list[Step] = []
    if job.evaluate and not model.merged:
        reference = [eval_step(job, model, None, texts)]
        plan.steps += reference
    if job.benchmark and not model.merged:
        benches.append(bench_step(job, model, None))
    for work in works:
        recipe: Recipe = work.recipe
        convert = convert_step(job, model, work, texts)
        plan.steps.append(convert)
        if model.merged and recipe.digest == model.merged.digest:
            merged = [convert]
        if job.evaluate:
            evaluation = eval_step(job, model, convert, texts, merged, reference)
            plan.steps.append(evaluation)
            reference = reference or [evaluation]
        if job.benchmark:
            benches.append(bench_step(job, model, convert))
    plan.steps += benches  # speeds are measured one after another, not hours apart
