"""What a job file may say. Every level is strict: an unknown key is an error. Paths are relative to the
file."""

import math
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from benchmarks.options import BenchSettings
from evals.options import EvalSettings, Metrics
from quantize.errors import BadInput
from quantize.files import typed_path
from quantize.methods.registry import parse_recipe
from quantize.options import Text, as_list
from quantize.recipe import CalibrationOptions, Recipe

#: What ``text:`` and ``tasks:`` call the text that every Python carries, and the task made from it.
HELD_OUT = "held-out"
MAX_COMBINATIONS = 1000  # of one matrix


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _source_alone(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _known_recipe(value: Any) -> Any:
    """Parse early, so that the error carries the line of the recipe."""
    entries = expand_recipe(value) if isinstance(value, (str, dict)) else []
    if not entries:
        raise ValueError("expected a recipe: a short spelling (gptq-int4) or a mapping with a method")
    return value


def expand_recipe(entry: str | dict[str, Any]) -> list[Recipe]:
    """One entry of ``recipes:`` -> its recipes; ``matrix: {bits: [3, 4], group_size: [64, 128]}`` makes every
    combination.

    Errors: ValueError with what is wrong, which pydantic turns into an error with its place.
    """
    try:
        if isinstance(entry, str) or "matrix" not in entry:
            return [parse_recipe(entry)]
        matrix = entry["matrix"]
        if (
            not isinstance(matrix, dict)
            or not all(isinstance(v, list) and v for v in matrix.values())
            or not matrix
        ):
            raise ValueError("matrix: expected parameters, each with a list of values, e.g. {bits: [3, 4]}")
        if math.prod(map(len, matrix.values())) > MAX_COMBINATIONS:
            raise ValueError(f"matrix: makes more than {MAX_COMBINATIONS:,} recipes; remove some values")
        fixed = {key: value for key, value in entry.items() if key != "matrix"}
        return [
            parse_recipe({**fixed, **dict(zip(matrix, values, strict=True))})
            for values in product(*matrix.values())
        ]
    except BadInput as error:
        raise ValueError(str(error)) from None


RecipeEntry = Annotated[str | dict[str, Any], BeforeValidator(_known_recipe)]
Recipes = Annotated[list[RecipeEntry], BeforeValidator(as_list)]
Names = Annotated[list[Text], BeforeValidator(as_list)]
RecipeNames = Annotated[list[Annotated[Text, BeforeValidator(_known_recipe)]], BeforeValidator(as_list)]
Calibration = Annotated[CalibrationOptions, BeforeValidator(_source_alone)]


class Model(Strict):
    """``source``: local folder or Hub id, ``@revision`` in it or apart. ``recipes`` and ``calibration``
    replace the job's own.

    ``adapters``: folders of PEFT LoRAs; each is merged into the source, and the result replaces the bare
    source.
    """

    source: Text
    revision: Text | None = None
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=200)
    recipes: Recipes | None = None
    skip: RecipeNames = Field(default_factory=list)
    adapters: Names = Field(default_factory=list)
    calibration: Calibration | None = None
    trust_remote_code: bool = False

    @property
    def id(self) -> str:
        return f"{self.source}@{self.revision}" if self.revision else self.source


class Evaluate(EvalSettings):
    """``quantwright eval``, of every artifact and model. ``runtime`` measures artifacts other than GGUF files
    in it, the reference in its own."""

    text: Text | None = Field(None, description="a UTF-8 text file, or held-out")
    metrics: Metrics = Field(
        ["perplexity", "divergence"],
        description="what to measure on the text: perplexity, divergence or both",
    )
    prompts: Text | None = Field(
        None,
        description="file of prompts that every artifact continues: one "
        "per line, or .jsonl (default: three cut from the text)",
    )

    @property
    def decisive(self) -> dict[str, Any]:
        """What of it decides results, for the keys of steps, under the names that it had there from the
        start: what was done under an older spelling is done."""
        values = self.model_dump(mode="json", exclude={"text", "tasks", "prompts", "cache_limit"})
        values["task_limit"], values["limit"] = values["limit"], values.pop("tokens")
        values["protocol"] = ",".join(self.protocol) if self.protocol else None
        return values


class Benchmark(BenchSettings):
    """``quantwright bench``, of every artifact and model. ``compile`` and ``runtime`` go for what runs in
    torch: llama.cpp has nothing to compile, and opens GGUF files in any case."""


class Publish(Strict):
    """``repo``: ``user/name``, in which {model} and {format} (GGUF, or the recipe) are filled in.
    ``recipes``: only these.

    Without ``upload`` the repositories are written to RUN/published.
    """

    repo: str = Field(pattern=r"^[^/]+/[^/]+$", max_length=200)
    recipes: RecipeNames = Field(default_factory=list)
    upload: bool = False
    private: bool = False
    license: Text | None = None
    license_name: Text | None = None
    license_link: Text | None = None
    base_model: Text | None = None


class Nodes(Strict):
    """Kind of step -> custom resource that its Ray node must have (``ray start --resources '{"quiet":
    1}'``)."""

    convert: Text | None = None
    eval: Text | None = None
    bench: Text | None = None
    report: Text | None = None
    publish: Text | None = None


class Resources(Strict):
    """How steps run. ``parallel``: steps at a time, as far as ``memory`` allows (benchmarks always run
    alone); by default one, on a Ray cluster as many as its nodes hold. ``store``: URL by which files go to
    nodes that do not see the run folder."""

    device: Text = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=4096)
    memory: Text | None = None
    parallel: int | None = Field(default=None, ge=1, le=4096)
    time_limit_minutes: float | None = Field(default=None, gt=0, le=1e7, allow_inf_nan=False)
    retries: int = Field(default=2, ge=0, le=1000)
    nodes: Nodes = Field(default_factory=Nodes)
    store: Text | None = None


class Job(Strict):
    """A whole job file. ``cache``: folder or URL that several runs and users share."""

    models: Annotated[list[Annotated[Model, BeforeValidator(_source_alone)]], BeforeValidator(as_list)] = (
        Field(min_length=1)
    )
    recipes: Recipes = Field(default_factory=list)
    calibration: Calibration = Field(default_factory=CalibrationOptions)
    verify: Literal["full", "tensors", "none"] = "full"
    allow_lower_verification: bool = False
    evaluate: Evaluate | None = None
    benchmark: Benchmark | None = None
    report: bool = True
    publish: Publish | None = None
    cache: Text | None = None
    resources: Resources = Field(default_factory=Resources)

    def recipes_of(self, model: Model) -> list[Recipe]:
        """Expanded, each once, without those the model skips, in the order of the file."""
        entries = model.recipes if model.recipes is not None else self.recipes
        skipped = {recipe.digest for text in model.skip for recipe in expand_recipe(text)}
        found: dict[str, Recipe] = {}
        for entry in entries:
            for recipe in expand_recipe(entry):
                found.setdefault(recipe.digest, recipe)
        return [recipe for digest, recipe in found.items() if digest not in skipped]


def resolve_path(text: str, base: Path) -> Path | None:
    """``text`` as a path relative to the job file's folder, where something lies there."""
    path = typed_path(base / typed_path(text))
    return path.resolve() if path.exists() else None
