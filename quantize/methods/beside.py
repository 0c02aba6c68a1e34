"""Recipes that one process makes beside another's from the same reading of the model, on a command line that
programs write: ``convert MODEL --to A -o OUT --beside '[[B, OUT_OF_B], ...]'``."""

import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe
from quantize.recipe import Recipe


def spell_beside(beside: Iterable[tuple[Recipe, Path]]) -> str:
    """Recipes whole, with the paths of their files: a short spelling does not hold everything."""
    spelled = []
    for recipe, out in beside:
        named = [name for name, content in recipe.contents.items() if getattr(recipe, content)]
        files = dict(zip(named, recipe.files, strict=True))
        values = recipe.model_dump(mode="json") | {name: str(path) for name, path in files.items()}
        spelled.append([values, str(out)])
    return json.dumps(spelled)


def read_beside(text: str) -> list[tuple[Recipe, Path]]:
    """Errors: BadInput."""
    try:
        return [(parse_recipe(values), Path(out)) for values, out in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise BadInput(f"--beside: expected [[recipe, folder], ...] as JSON: {error}") from None


def by_reading(works: Sequence[Work[Any]]) -> dict[str, list[Recipe]]:
    """The digest of the first recipe of each reading that several share -> the others."""
    groups: dict[Hashable, dict[str, Recipe]] = {}
    for work in works:
        if work.reading is not None:
            groups.setdefault(work.reading, {}).setdefault(work.recipe.digest, work.recipe)
    shared = [list(group.values()) for group in groups.values() if len(group) > 1]
    return {recipes[0].digest: recipes[1:] for recipes in shared}
