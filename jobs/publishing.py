"""Steps that publish what a job has made, with the numbers it has measured: to a folder, or to the Hub."""

from collections.abc import Sequence
from pathlib import Path

from jobs.spec import Job, Publish, expand_recipe
from jobs.steps import Plan, Step, results_path
from quantize.errors import BadInput

FOLDER = Path("published")


def publish_steps(job: Job, plan: Plan) -> list[Step]:
    """GGUF files of one model share a repository, every other artifact has its own.

    Errors: BadInput where two repositories would have the same name, or a recipe is named that the job does
    not make.
    """
    publish = job.publish
    if publish is None:
        return []
    wanted = {recipe.digest: recipe.short for text in publish.recipes for recipe in expand_recipe(text)}
    made = {recipe.digest for recipe in plan.recipes.values()}
    unmade = [short for digest, short in wanted.items() if digest not in made]
    if unmade:
        raise BadInput(
            f"publish.recipes: {unmade[0]} is not made by this job; add it to recipes, or take it out"
        )
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in plan.steps:
        if step.kind == "convert" and (not wanted or plan.recipes[step.id].digest in wanted):
            recipe = plan.recipes[step.id]
            groups.setdefault(
                (step.id.split(":")[1], "GGUF" if recipe.method == "gguf" else recipe.slug), []
            ).append(step)
    steps = [_step(job, publish, plan, model, kind, converts) for (model, kind), converts in groups.items()]
    names = [step.name for step in steps]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadInput(
            f"publish.repo: several repositories would be {twice}; put {{model}} and {{format}} into the name"
        )
    return steps


def _step(job: Job, publish: Publish, plan: Plan, model: str, kind: str, converts: Sequence[Step]) -> Step:
    try:
        repo = publish.repo.format(model=model, format=kind)
    except (KeyError, IndexError, ValueError):
        raise BadInput(
            f"publish.repo {publish.repo!r}: may hold {{model}} and {{format}}, nothing else in braces"
        ) from None
    arguments = ["publish", *[step.name for step in converts], "--repo", repo, "--results", "."]
    for option in ("license", "license_name", "license_link", "base_model"):
        value = getattr(publish, option)
        arguments += [f"--{option.replace('_', '-')}={value}"] if value else []
    arguments += ["--private"] if publish.private else []
    arguments += ["--allow-unverified"] if job.verify == "none" else []
    # What is uploaded lies in artifacts/ already; only a dry run writes the repository out.
    output = FOLDER / f"{repo}.json" if publish.upload else FOLDER / repo / "README.md"
    if not publish.upload:
        arguments += ["--dry-run", "--force", "-o", str(FOLDER / repo)]
    stages = [name for name, asked in (("eval", job.evaluate), ("bench", job.benchmark)) if asked]
    measured = [other for other in plan.steps if other.kind in stages and f":{model}:" in other.id]
    return Step(
        id=f"publish:{model}:{kind}",
        kind="publish",
        arguments=(*arguments, "--json"),
        output=output,
        name=repo,
        after=tuple(step.id for step in converts),
        prefers=tuple(step.id for step in measured),
        inputs={"repo": repo, **publish.model_dump(exclude={"repo", "recipes"})},
        files=tuple(results_path(step.name, stage) for step in converts for stage in stages),
        packages=("quantwright", "huggingface_hub"),
    )
