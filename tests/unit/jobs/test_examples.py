"""Every job file that ships is valid, planned, and accepted by the schema that editors use."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs.commands.init import TEMPLATE
from jobs.load import load_job
from jobs.plan import build_plan
from jobs.schema import job_schema

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [ROOT / "demo" / "job.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_planned_whole(path: Path) -> None:
    job = load_job(path)
    plan = build_plan(job, path.parent)
    converts = [step for step in plan.steps if step.kind == "convert"]
    asked = {
        f"convert:{model.name}:{recipe.slug}"
        for model in plan.models
        for recipe in job.recipes_of(model.spec)
    }
    merged = {
        f"convert:{model.name}:{model.merged.slug}" for model in plan.models if model.merged and job.evaluate
    }
    # of an engine in an environment of its own that is not installed here
    absent = {f"convert:{row.name.split('/')[-2]}:{row.name.split('/')[-1]}" for row in plan.rows}
    assert {step.id for step in converts} == (asked | merged) - absent
    assert all("quantwright env install" in row.reason for row in plan.rows)
    assert len({step.id for step in plan.steps}) == len(plan.steps)
    known = {step.id for step in plan.steps}
    assert all({other.id for other in (*step.after, *step.prefers)} <= known for step in plan.steps)
    if job.evaluate:
        assert sum(step.kind == "eval" for step in plan.steps) == len(converts) + sum(
            not model.merged for model in plan.models
        )
    if job.benchmark:
        assert sum(step.kind == "bench" for step in plan.steps) == len(converts) + sum(
            not model.merged for model in plan.models
        )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_satisfies_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), job_schema())


def test_schema_refuses_a_typo() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"models": ["a"], "recipes": ["float32"], "evaluate": {"metrcs": []}}, job_schema()
        )


def test_schema_in_docs_is_current() -> None:
    assert json.loads((ROOT / "docs" / "job.schema.json").read_text(encoding="utf-8")) == job_schema()


def test_template_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(TEMPLATE.format(name="job.yaml"), encoding="utf-8")
    job = load_job(path)
    assert [recipe.short for recipe in job.recipes_of(job.models[0])] == ["gguf-q4_k_m", "gptq-int4"]
    uncommented = (
        path.read_text(encoding="utf-8").replace("  # - source", "  - source").replace("  #   ", "    ")
    )
    path.write_text(
        uncommented.replace("\n# calibration", "\ncalibration").replace("\n# resources", "\nresources"),
        encoding="utf-8",
    )
    assert load_job(path).models[1].skip == ["awq-int4"]
