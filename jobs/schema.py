"""JSON Schema of the job file, for editors: ``python -m jobs.schema > docs/job.schema.json``.

``# yaml-language-server: $schema=...`` in a job file makes editors complete and check it.
"""

import json
from typing import Any

from jobs.spec import Job


def job_schema() -> dict[str, Any]:
    """What pydantic knows, and the shorthand that the validators accept besides: one in place of a list, a
    name for a mapping."""
    schema = Job.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    model, calibration = {"$ref": "#/$defs/Model"}, {"$ref": "#/$defs/CalibrationOptions"}
    text = {"type": "string"}
    properties = schema["properties"]
    properties["models"] = {
        "title": "Models",
        "anyOf": [text, model, {"type": "array", "items": {"anyOf": [text, model]}, "minItems": 1}],
    }
    properties["calibration"] = {"anyOf": [text, calibration]}
    definitions["Model"]["properties"]["calibration"] = {"anyOf": [text, calibration, {"type": "null"}]}
    recipe = {"anyOf": [text, {"type": "object", "required": ["method"]}]}
    recipes = {"anyOf": [text, {"type": "array", "items": recipe}]}
    properties["recipes"] = {"title": "Recipes", **recipes}
    definitions["Model"]["properties"]["recipes"] = {
        "title": "Recipes",
        "anyOf": [*recipes["anyOf"], {"type": "null"}],
    }
    for owner, key in (
        ("Model", "skip"),
        ("Model", "adapters"),
        ("Evaluate", "metrics"),
        ("Evaluate", "protocol"),
        ("Evaluate", "tasks"),
        ("Publish", "recipes"),
    ):
        definitions[owner]["properties"][key] = _or_one(definitions[owner]["properties"][key])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Quantwright job"}


def _or_one(schema: dict[str, Any]) -> dict[str, Any]:
    """A list, or one of its items in its place."""
    forms = schema.pop("anyOf", None) or [{"type": schema.pop("type"), "items": schema.pop("items")}]
    return {**schema, "anyOf": [next(form["items"] for form in forms if "items" in form), *forms]}


def main() -> None:
    print(json.dumps(job_schema(), indent=2))


if __name__ == "__main__":
    main()
