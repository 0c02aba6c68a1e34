"""The step that measures quality, against the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    arguments = ["eval", name, "--reference", against]
    inputs: dict[str, Any] = {
        **evaluate.model_dump(exclude={"text", "tasks", "prompts", "cache_limit"}),
        **run_inputs(job),
    }
    text, tasks = texts.text, texts.tasks
    llamacpp = recipe is not None and require(recipe).runtime == "llamacpp"
    if HELD_OUT in (text, *tasks):
        inputs["held_out"] = texts.held_out_sha256
    files = [path for path in (text, *tasks, texts.prompts) if isinstance(path, Path)]
    files += [
        path for task in tasks if isinstance(task, str) and (path := Path(task.partition("=")[2])).is_file()
    ]
    if text is not None:
        arguments += ["--text", str(text), "--metrics", ",".join(evaluate.metrics), "--ids", evaluate.ids]
        if evaluate.protocol:
            arguments += ["--protocol", evaluate.protocol]
        if evaluate.limit:
            arguments += ["--tokens", str(evaluate.limit)]
        if not evaluate.floors or recipe != model.merged:
            arguments.append("--no-floors")
        if llamacpp:
            arguments += ["--weights-only", evaluate.weights_only]
        if evaluate.cache_limit:
            arguments += ["--cache-limit", evaluate.cache_limit]
    if tasks:
        arguments += ["--tasks", ",".join(map(str, tasks))]
        inputs["tasks"] = [task if isinstance(task, str) else task.name for task in tasks]
        if evaluate.task_limit:
            arguments += ["--limit", str(evaluate.task_limit)]
        if evaluate.num_fewshot is not None:
            arguments += ["--num-fewshot", str(evaluate.num_fewshot)]
        if evaluate.apply_chat_template:
            arguments.append("--apply-chat-template")
        if evaluate.chat_template:
            arguments += ["--chat-template", evaluate.chat_template]
        if evaluate.allow_code_execution:
            arguments.append("--allow-code-execution")
        if evaluate.allow_task_code:
            arguments.append("--allow-task-code")
    if texts.prompts:
        arguments += ["--prompts", str(texts.prompts)]
    if evaluate.generate:
        arguments += ["--generate", str(evaluate.generate)]
    elsewhere = evaluate.runtime if recipe and recipe != model.merged and not llamacpp else None
    if elsewhere:
        arguments += ["--runtime", elsewhere]
    return EvalStep(
        arguments=(*arguments, *run_arguments(job, model), "--json"),
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
