"""The step that measures quality, against the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evals.options import EvalOptions, EvalSettings
from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.costs import Experience, StepCost
from jobs.machine import run_arguments, run_inputs
from jobs.memory import comparing_memory, floors_memory
from jobs.models import OpenModel
from jobs.sharing import ReferenceShare, Share
from jobs.spec import HELD_OUT, Job
from jobs.steps.convert import ConvertStep
from jobs.steps.measure import MeasureStep, runtime_packages
from jobs.steps.step import Step
from jobs.texts import Texts
from jobs.transfer import reference_files
from quantize.methods.registry import require
from quantize.results import results_path
from quantize.units import GIB

TEXT_TOKENS = 70_000  # where no limit is given: the held-out text of the demo has about so many
CACHE_LIMIT = 4 * GIB
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

    def cost(self, job: Job, experience: Experience) -> StepCost:
        evaluate, weights = job.evaluate, self.checkpoint.parameters
        tokens = (evaluate.tokens if evaluate else None) or TEXT_TOKENS
        vocabulary = int(self.checkpoint.config.get("vocab_size") or 32_000)
        rate_kind, work = f"eval:{self.method}", weights / 1e6 * tokens / 1e3
        tasks = bool(evaluate and evaluate.tasks)
        memory = comparing_memory(self.costs, self.held_bytes(), vocabulary, tasks)
        cache = scratch = 0
        if self.recipe is None:
            cache = min(tokens // 2 * (2 * vocabulary + 20), CACHE_LIMIT)
            if evaluate and evaluate.floors:
                scratch, floors = 4 * weights, floors_memory(weights)
                # Where they do not fit, they are left out.
                memory += floors if memory + floors <= experience.available_bytes else 0
        memory = experience.peak_bytes(rate_kind, work) or memory
        time = experience.time(rate_kind, work)
        return StepCost(self.id, self.kind, None, cache, memory, time, work, rate_kind, scratch)

    def share(self, cache: SharedCache | BucketCache, run: Path) -> Share | None:
        return None if self.recipe else ReferenceShare(cache, run)

    def carried(self, run: Path) -> dict[str, str]:
        return super().carried(run) | reference_files(run, self.reference)


def eval_step(
    job: Job,
    model: OpenModel,
    made: ConvertStep | None,
    texts: Texts,
    merged: Sequence[ConvertStep] = (),
    prefers: Sequence[Step] = (),
) -> EvalStep:
    """``made``: the step that makes what is measured; None for the model itself. ``merged``: what makes the
    reference, where that exists nowhere yet."""
    evaluate, recipe = job.evaluate, made.recipe if made else None
    assert evaluate is not None
    name = model.artifact_name(recipe) if recipe else model.id
    against = model.artifact_name(model.merged) if model.merged else model.id
    inputs: dict[str, Any] = {**evaluate.decisive, **run_inputs(job)}
    text, tasks = texts.text, texts.tasks
    llamacpp = recipe is not None and require(recipe).format.runtime == "llamacpp"
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
        made=made,
        after=tuple(dict.fromkeys(step for step in (*merged, made) if step)),
        prefers=tuple(prefers),
        inputs=inputs,
        files=tuple(files),
        sources=model.sources,
        packages=runtime_packages(recipe)
        + (("lm-eval",) if tasks else ())
        + ((elsewhere,) if elsewhere else ()),
    )
