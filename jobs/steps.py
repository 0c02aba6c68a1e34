"""What a job has to do: a list of steps, each one command line of this program, with what it needs and what
it leaves behind."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.models import OpenModel, open_models
from jobs.spec import HELD_OUT, Job
from jobs.texts import Texts
from quantize.conversion import check, require
from quantize.errors import BadInput, QuantwrightError
from quantize.recipe import Recipe, RunOptions

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
#: In arguments: the step's own folder, from which its results are moved into the run folder when it has
#: succeeded.
STAGE = "{stage}"


@dataclass(frozen=True)
class Step:
    """``arguments`` are those of ``quantwright``, run with the run folder as working directory; ``output`` is
    relative to it.

    ``after``: steps that must have ended well before; ``prefers``: steps that only go first where they can.
    ``inputs`` (JSON), ``files`` (contents), the outputs of ``after`` and the versions of ``packages`` make
    its key.
    """

    id: str
    kind: str
    arguments: tuple[str, ...]
    output: Path
    name: str = ""  # the artifact or model as results name it
    model: str = ""
    recipe: str = ""
    after: tuple[str, ...] = ()
    prefers: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    sources: tuple[str, ...] = ()  # names of models whose contents belong to the key
    packages: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return self.id.replace(":", ".")


@dataclass(frozen=True)
class Row:
    """An artifact that cannot be made: ``status`` unsupported or failed."""

    name: str
    model: str
    recipe: str
    status: str
    reason: str


@dataclass
class Plan:
    """``rows``: combinations that no step will make, and why."""

    steps: list[Step]
    models: list[OpenModel]
    rows: list[Row]
    recipes: dict[str, Recipe] = field(default_factory=dict)  # convert step id -> recipe


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
        usable: list[Recipe] = []
        for recipe in recipes:
            problem = _problem(model, recipe)
            if problem:
                plan.rows.append(Row(_artifact_name(model, recipe), model.label, recipe.short, *problem))
            else:
                usable.append(recipe)
        if model.checkpoint is not None:
            _add_model(plan, job, model, usable, texts)
    if not plan.steps and not plan.rows:
        raise BadInput("nothing to do: the job names no recipes, nothing to evaluate and no benchmark")
    if job.report:
        made = tuple(step.id for step in plan.steps)
        plan.steps.append(
            Step(
                "report",
                "report",
                ("report", ".", "--json"),
                Path("report/index.html"),
                prefers=made,
                packages=("quantwright",),
            )
        )
    if job.publish:
        from jobs.publishing import publish_steps

        plan.steps += publish_steps(job, plan)
    return plan


def _problem(model: OpenModel, recipe: Recipe) -> tuple[str, str] | None:
    """(status, reason) where the recipe cannot be made of the model."""
    if model.checkpoint is None:
        return "failed", model.problem
    try:
        check(require(recipe), model.checkpoint, recipe)
    except QuantwrightError as error:
        return "unsupported", str(error)
    return None


def _artifact_name(model: OpenModel, recipe: Recipe) -> str:
    return f"artifacts/{model.name}/{recipe.slug}"


def _add_model(plan: Plan, job: Job, model: OpenModel, recipes: Sequence[Recipe], texts: Texts) -> None:
    reference: tuple[str, ...] = ()
    if job.evaluate and not model.merged:
        step = _eval_step(job, model, None, texts, ())
        plan.steps.append(step)
        reference = (step.id,)
    converts, evals, benches = [], [], []
    for recipe in recipes:
        convert = _convert_step(job, model, recipe, texts)
        plan.recipes[convert.id] = recipe
        converts.append(convert)
        if job.evaluate:
            evals.append(_eval_step(job, model, recipe, texts, reference))
            reference = reference or (evals[0].id,)
        if job.benchmark:
            benches.append(_bench_step(job, model, recipe))
    if job.benchmark and not model.merged:
        benches.insert(0, _bench_step(job, model, None))
    # Speeds are measured one after another, not hours apart.
    pairs = [step for index, convert in enumerate(converts) for step in [convert, *evals[index : index + 1]]]
    plan.steps += [*pairs, *benches]


def _convert_step(job: Job, model: OpenModel, recipe: Recipe, texts: Texts) -> Step:
    name = _artifact_name(model, recipe)
    calibration = texts.calibration(model.spec.calibration or job.calibration)
    arguments = ["convert", model.id, *recipe.arguments, "-o", name, "--verify", job.verify]
    arguments += ["--allow-lower-verification"] if job.allow_lower_verification else []
    inputs: dict[str, Any] = {"recipe": recipe.digest, "verify": job.verify, **_run_inputs(job)}
    files = recipe.files
    if recipe.calibrated:
        arguments += ["--calibration", calibration.source, "--calibration-tokens", str(calibration.tokens)]
        arguments += [
            "--calibration-length",
            str(calibration.sequence_length),
            "--seed",
            str(calibration.seed),
        ]
        inputs["calibration"] = calibration.model_dump(exclude={"source"})
        path = Path(calibration.source)
        if path.is_file():
            files = (*files, path)
        else:
            inputs["calibration_source"] = calibration.source
    if model.adapter:
        arguments += ["--adapter", str(model.adapter)]
        inputs["adapter"] = model.adapter.name
        files += tuple(model.adapter / name for name in ADAPTER_FILES)
    method = require(recipe)
    loads = ("torch", "transformers") if method.needs and method.runtime != "llamacpp" else ()
    return Step(
        id=f"convert:{model.name}:{recipe.slug}",
        kind="convert",
        arguments=(*arguments, *_run_arguments(job, model), "--json"),
        output=Path(name),
        name=name,
        model=model.label,
        recipe=recipe.short,
        inputs=inputs,
        files=files,
        sources=(model.name,),
        packages=("quantwright", "numpy", *loads, *[distribution for distribution, _ in method.needs]),
    )


def _eval_step(
    job: Job, model: OpenModel, recipe: Recipe | None, texts: Texts, reference: tuple[str, ...]
) -> Step:
    evaluate = job.evaluate
    assert evaluate is not None
    name = _artifact_name(model, recipe) if recipe else model.id
    against = _artifact_name(model, model.merged) if model.merged else model.id
    arguments = ["eval", name, "--reference", against, "-o", STAGE]
    inputs: dict[str, Any] = {
        **evaluate.model_dump(exclude={"text", "tasks", "prompts", "cache_limit"}),
        **_run_inputs(job),
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
    suffix = recipe.slug if recipe else "reference"
    needed = [made.slug for made in (model.merged, recipe) if made]
    return Step(
        id=f"eval:{model.name}:{suffix}",
        kind="eval",
        arguments=(*arguments, *_run_arguments(job, model), "--json"),
        output=results_path(name, "eval"),
        name=name,
        model=model.label,
        recipe=recipe.short if recipe else "",
        after=tuple(f"convert:{model.name}:{made}" for made in dict.fromkeys(needed)),
        prefers=reference,
        inputs=inputs,
        files=tuple(files),
        sources=(model.name,),
        packages=_runtime_packages(recipe)
        + (("lm-eval",) if tasks else ())
        + ((elsewhere,) if elsewhere else ()),
    )


def _bench_step(job: Job, model: OpenModel, recipe: Recipe | None) -> Step:
    benchmark = job.benchmark
    assert benchmark is not None
    name = _artifact_name(model, recipe) if recipe else model.id
    suffix = recipe.slug if recipe else "reference"
    arguments = [
        "bench",
        name,
        "-o",
        STAGE,
        "--prefill",
        str(benchmark.prefill),
        "--decode",
        str(benchmark.decode),
    ]
    arguments += ["--repetitions", str(benchmark.repetitions), "--rounds", str(benchmark.rounds)]
    arguments += [
        "--depth",
        ",".join(map(str, benchmark.depths)),
        "--batch",
        ",".join(map(str, benchmark.batches)),
    ]
    if benchmark.attention:
        arguments += ["--attention", benchmark.attention]
    if benchmark.compile and not (recipe and require(recipe).runtime == "llamacpp"):
        arguments.append("--compile")
    return Step(
        id=f"bench:{model.name}:{suffix}",
        kind="bench",
        arguments=(*arguments, *_run_arguments(job, model), "--json"),
        output=results_path(name, "bench"),
        name=name,
        model=model.label,
        recipe=recipe.short if recipe else "",
        after=(f"convert:{model.name}:{suffix}",) if recipe else (),
        inputs={**benchmark.model_dump(), **_run_inputs(job)},
        sources=() if recipe else (model.name,),
        packages=_runtime_packages(recipe),
    )


def results_path(name: str, stage: str) -> Path:
    """Where eval and bench write their results, relative to the run folder."""
    path: Path = importlib.import_module("quantize.results").results_path(Path(), name, stage)
    return path


def _runtime_packages(recipe: Recipe | None) -> tuple[str, ...]:
    if recipe is None:
        return ("quantwright", "torch", "transformers")
    method = require(recipe)
    engine = tuple(distribution for distribution, _ in method.needs)
    return ("quantwright", *(engine if method.runtime == "llamacpp" else ("torch", "transformers", *engine)))


def _run_inputs(job: Job) -> dict[str, Any]:
    """Options that can change numbers."""
    resources = job.resources
    return {"device": device(resources.device), "dtype": resources.dtype, "threads": step_threads(job)}


def step_threads(job: Job) -> int:
    return job.resources.threads or max(1, RunOptions().resolved_threads // (job.resources.parallel or 1))


def device(asked: str) -> str:
    """``auto`` is the CPU where the system has no GPU; said outright, it spares steps that need no torch the
    import of it."""
    has_gpu = any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    return "cpu" if asked == "auto" and not has_gpu and sys.platform.startswith("linux") else asked


def _run_arguments(job: Job, model: OpenModel) -> list[str]:
    resources = job.resources
    arguments = [
        "--threads",
        str(step_threads(job)),
        "--device",
        device(resources.device),
        "--dtype",
        resources.dtype,
    ]
    if resources.memory:
        arguments += ["--memory", resources.memory]
    return [*arguments, "--trust-remote-code"] if model.spec.trust_remote_code else arguments
