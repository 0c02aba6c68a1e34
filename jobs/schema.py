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
        ("Evaluate", "tasks"),
        ("Publish", "recipes"),
    ):
        definitions[owner]["properties"][key] = {
            "anyOf": [text, {"type": "array", "items": text}],
            "title": key.capitalize(),
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Quantwright job"}


def main() -> None:
    print(json.dumps(job_schema(), indent=2))


if __name__ == "__main__":
    main()
