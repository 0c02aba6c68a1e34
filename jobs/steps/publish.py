"""Steps that publish what a job has made, with the numbers it has measured: to a folder, or to the Hub."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from jobs.costs import Experience, StepCost
from jobs.models import OpenModel
from jobs.spec import Job, Publish, expand_recipe
from jobs.steps.convert import ConvertStep
from jobs.steps.measure import MeasureStep
from jobs.steps.step import Step, printed
from quantize.errors import BadInput
from quantize.formats.gguf import GgufFormat
from quantize.into_place import write_json
from quantize.methods.registry import method as find_method
from quantize.results import results_path
from reports.naming import GENERIC

FOLDER = Path("published")


@dataclass(frozen=True, eq=False, kw_only=True)
class PublishStep(Step):
    """``model`` and ``format``: what one repository holds. ``upload``: what was said of the upload is what
    stays here; else the repository itself."""

    kind: ClassVar[str] = "publish"
    light: ClassVar[bool] = True

    model: str
    format: str
    upload: bool
    after: tuple[ConvertStep, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.model}:{self.format}"

    def _digest(self, run: Path) -> str | None:
        """Of the record of an upload; of a folder, its card and the names and sizes of its files, which are
        artifacts' own."""
        path = run / self.output
        if not path.is_file():
            return None
        whole = hashlib.sha256(path.read_bytes())
        if not self.upload:
            for file in sorted(file for file in path.parent.rglob("*") if file.is_file()):
                whole.update(f"{file.relative_to(path.parent)} {file.stat().st_size}\n".encode())
        return whole.hexdigest()

    def place(self, run: Path, stage: Path) -> bool:
        if not self.upload:
            return True
        document = printed(stage)
        if document is None:
            return False
        write_json(run / self.output, document)
        return True

    def cost(self, job: Job, experience: Experience) -> StepCost:
        copied = 0 if self.upload else sum(step.output_bytes or 0 for step in self.after)
        return replace(super().cost(job, experience), size_bytes=copied or None)


def publish_steps(job: Job, steps: Sequence[Step]) -> list[PublishStep]:
    """Of what ``steps`` make: GGUF files of one model share a repository, every other artifact has its own.

    Errors: BadInput where two repositories would have the same name, or a recipe is named that the job does
    not make.
    """
    publish = job.publish
    if publish is None:
        return []
    conversions = [step for step in steps if isinstance(step, ConvertStep)]
    wanted = {recipe.digest: recipe.short for text in publish.recipes for recipe in expand_recipe(text)}
    made = {step.recipe.digest for step in conversions}
    unmade = [short for digest, short in wanted.items() if digest not in made]
    if unmade:
        raise BadInput(
            f"publish.recipes: {unmade[0]} is not made by this job; add it to recipes, or remove it"
        )
    groups: dict[tuple[str, str], list[ConvertStep]] = {}
    for step in conversions:
        if not wanted or step.recipe.digest in wanted:
            form = find_method(step.recipe.method).format.shared_repository or step.recipe.slug
            groups.setdefault((step.model.name, form), []).append(step)
    found = [
        _step(job, publish, model, form, converts, [step for step in steps if _measures(step, model)])
        for (model, form), converts in groups.items()
    ]
    names = [step.name for step in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadInput(
            f"publish.repo: several repositories would be named {twice}; use {{model}} and {{format}} in it"
        )
    for (_, form), converts in groups.items():
        if form == GgufFormat.shared_repository:
            _check_name(converts[0].model, publish)
    return found


def _own_name(model: OpenModel) -> str | None:
    """By which files are called, where the source's folder says nothing: the job's name of the model."""
    folder = Path(model.id)
    if not folder.is_absolute() or model.adapter is not None or not GENERIC.fullmatch(folder.name):
        return None
    return model.name


def _check_name(model: OpenModel, publish: Publish) -> None:
    """Errors: BadInput where nothing says what the model is called."""
    own = _own_name(model)
    if own is not None and GENERIC.fullmatch(own) and not publish.base_model:
        raise BadInput(
            f"publish: {own!r} is not a model's name; give it one in models "
            f"({{source: {Path(model.id).name}, name: NAME}}), or give publish.base_model"
        )


def _measures(step: Step, model: str) -> bool:
    return isinstance(step, MeasureStep) and step.model.name == model


def _step(
    job: Job,
    publish: Publish,
    model: str,
    form: str,
    converts: Sequence[ConvertStep],
    measured: Sequence[Step],
) -> PublishStep:
    try:
        repo = publish.repo.format(model=model, format=form)
    except (KeyError, IndexError, ValueError):
        raise BadInput(
            f"publish.repo {publish.repo!r}: braces may contain only {{model}} and {{format}}"
        ) from None
    arguments = ["publish", *[step.name for step in converts], "--repo", repo, "--results", "."]
    for option in ("license", "license_name", "license_link", "base_model"):
        value = getattr(publish, option)
        arguments += [f"--{option.replace('_', '-')}={value}"] if value else []
    own = _own_name(converts[0].model) if form == GgufFormat.shared_repository else None
    own = None if own and GENERIC.fullmatch(own) else own  # the base model's
    arguments += [f"--name={own}"] if own else []
    arguments += ["--private"] if publish.private else []
    arguments += ["--allow-unverified"] if job.verify == "none" else []
    # What is uploaded lies in artifacts/ already; only a dry run writes the repository out.
    output = FOLDER / f"{repo}.json" if publish.upload else FOLDER / repo / "README.md"
    if not publish.upload:
        arguments += ["--dry-run", "--force", "-o", str(FOLDER / repo)]
    stages = [name for name, asked in (("eval", job.evaluate), ("bench", job.benchmark)) if asked]
    return PublishStep(
        arguments=(*arguments, "--json"),
        output=output,
        name=repo,
        model=model,
        format=form,
        upload=publish.upload,
        after=tuple(converts),
        prefers=tuple(measured),
        inputs={
            "repo": repo,
            **publish.model_dump(exclude={"repo", "recipes"}),
            **({"name": own} if own else {}),
        },
        files=tuple(results_path(Path(), step.name, stage) for step in converts for stage in stages),
        packages=("quantwright", "huggingface_hub"),
    )
