"""The step that measures quality, against the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evals.options import EvalOptions, EvalSettings
from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.machine import run_arguments, run_inputs
from jobs.models import OpenModel
from jobs.sharing import ReferenceShare, Share
from jobs.spec import HELD_OUT, Job
from jobs.steps.measure import MeasureStep, runtime_packages
from jobs.steps.step import Step
from jobs.texts import Texts
from jobs.transfer import reference_files
from quantize.conversion import require
from quantize.recipe import Recipe
from quantize.results import results_path

#: What means nothing without a text, or without tasks.
OF_TEXT = {"metrics", "protocol", "ids", "tokens", "floors", "weights_only", "cache_limit"}
OF_TASKS = {
    "limit",
    "num_fewshot",
    "apply_chat_template",
    "chat_template",
    "allow_code_execution",
    "allow_task_code",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class EvalStep(MeasureStep):
    """``reference``: what it is compared with, as results name that. The reference's own evaluation leaves
    its logits in the run's cache."""

    kind: ClassVar[str] = "eval"

    reference: str

    def share(self, cache: SharedCache | BucketCache, run: Path) -> Share | None:
        return None if self.recipe else ReferenceShare(cache, run)

    def carried(self, run: Path) -> dict[str, str]:
        return super().carried(run) | reference_files(run, self.reference)


def eval_step(
    job: Job,
    model: OpenModel,
    recipe: Recipe | None,
    texts: Texts,
    after: Sequence[Step],
    prefers: Sequence[Step],
) -> EvalStep:
    evaluate = job.evaluate
    assert evaluate is not None
    name = model.artifact_name(recipe) if recipe else model.id
    against = model.artifact_name(model.merged) if model.merged else model.id
    inputs: dict[str, Any] = {**evaluate.decisive, **run_inputs(job)}
    text, tasks = texts.text, texts.tasks
    llamacpp = recipe is not None and require(recipe).runtime == "llamacpp"
    if HELD_OUT in (text, *tasks):
        inputs["held_out"] = texts.held_out_sha256
    files = [path for path in (text, *tasks, texts.prompts) if isinstance(path, Path)]
    files += [
        path for task in tasks if isinstance(task, str) and (path := Path(task.partition("=")[2])).is_file()
    ]
    if tasks:
        inputs["tasks"] = [task if isinstance(task, str) else task.name for task in tasks]
    is_reference = recipe == model.merged
    elsewhere = evaluate.runtime if recipe and not is_reference and not llamacpp else None
    told = {name: getattr(evaluate, name) for name in EvalSettings.model_fields} | {
        "text": text,
        "tasks": tasks,
        "prompts": texts.prompts,
        "floors": evaluate.floors and is_reference,
        "weights_only": evaluate.weights_only if llamacpp else "sample",
        "runtime": elsewhere,
        "reference": against,
    }
    idle = (OF_TEXT if text is None else set()) | (set() if tasks else OF_TASKS)
    options = EvalOptions.of(**{key: value for key, value in told.items() if key not in idle})
    return EvalStep(
        arguments=("eval", name, *options.arguments(), *run_arguments(job, model), "--json"),
        output=results_path(Path(), name, "eval"),
        name=name,
        model=model,
        recipe=recipe,
        reference=against,
        after=tuple(after),
        prefers=tuple(prefers),
        inputs=inputs,
        files=tuple(files),
        sources=model.sources,
        packages=runtime_packages(recipe)
        + (("lm-eval",) if tasks else ())
        + ((elsewhere,) if elsewhere else ()),
    )
