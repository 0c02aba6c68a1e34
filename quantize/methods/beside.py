"""Recipes that one process makes beside another's, on a command line that
programs write: ``convert MODEL --to A -o OUT --beside '[[B, OUT_OF_B], ...]'``."""

import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.methods.base import Work
from quantize.methods.gguf_recipe import GgufRecipe
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


def in_one_process(works: Sequence[Work[Any]]) -> list[list[Recipe]]:
    """The recipes, in groups that one process makes, in its order: those of one reading, and those that this
    program's own engines calibrate, of which an importance matrix takes what AWQ has summed up."""
    groups: dict[Hashable, dict[str, Recipe]] = {}
    for work in sorted(works, key=lambda each: isinstance(each.recipe, GgufRecipe) and each.calibrated):
        recipe = work.recipe
        calibrates = work.calibrated and getattr(recipe, "engine", "native") == "native"
        shared = work.reading if work.reading is not None else ("calibrated" if calibrates else recipe.digest)
        groups.setdefault(shared, {}).setdefault(recipe.digest, recipe)
    return [list(group.values()) for group in groups.values()]
