"""The job file: YAML -> Job. An error names the file, the line, the key, and for a typo the nearest known
key."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.old_names import SECTION, Place, old_names, renamed
from jobs.spec import Job
from quantize.errors import BadInput
from quantize.files import CONTROL, MAX_YAML_BYTES, parse_yaml, parse_yaml_nodes, read_text, typed_path
from quantize.recipe import AUTO
from quantize.terminal import log, printable


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Errors: BadInput, one line, for anything that is not a valid job."""
    if not typed_path(path).exists():
        raise BadInput(f"{path}: no such job file; `quantwright init` writes one to start from")
    data, lines = _read_yaml(path, read_text(path, MAX_YAML_BYTES))
    if not isinstance(data, dict):
        raise BadInput(
            f"{path}:1: expected a mapping with models: and "
            "recipes:; `quantwright init` writes one to start from"
        )
    changed = [_override(data, text) for text in overrides]
    names, warning = old_names(data, f"{path}:{_line((SECTION,), lines)}: {SECTION}")
    if names:
        data[SECTION] = {names.get(key, key): value for key, value in data[SECTION].items()}
        lines = {renamed(place, names): line for place, line in lines.items()}
        changed = [renamed(place, names) for place in changed]
    if warning:
        log(printable(warning, 1000))
    models = data.get("models")
    for owner in (data, *(models if isinstance(models, list) else [models])):
        if isinstance(owner, dict) and "recipes" in owner:
            owner["recipes"] = _place_matrices(owner["recipes"], path.absolute().parent)
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise BadInput(_explain(path, error, data, lines, changed)) from None


def _place_matrices(recipes: Any, base: Path) -> Any:
    """``imatrix`` of recipes, in either spelling, made absolute (but for ``auto``): like every path of a job
    it is relative to the file."""
    if isinstance(recipes, list):
        return [_place_matrices(recipe, base) for recipe in recipes]
    if isinstance(recipes, str):
        return re.sub(r"(?<=[:,]imatrix=)[^,]+", lambda found: _placed(found[0].strip(), base), recipes)
    if not isinstance(recipes, dict):
        return recipes
    placed = {
        key: _place_matrices(value, base) if key == "matrix" else value for key, value in recipes.items()
    }
    files = placed.get("imatrix")
    if isinstance(files, list):
        placed["imatrix"] = [_placed(file, base) if isinstance(file, str) else file for file in files]
    elif isinstance(files, str):
        placed["imatrix"] = _placed(files, base)
    return placed


def _placed(file: str, base: Path) -> str:
    return file if file.lower() == AUTO else str(base / typed_path(file))


def job_of(data: dict[str, Any]) -> Job:
    """A job made on the command line. Errors: BadInput."""
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(printable(str(first["msg"]).removeprefix("Value error, "), 1000)) from None


def _read_yaml(path: Path, text: str) -> tuple[Any, dict[Place, int]]:
    """Data, and the line (from 1) of every key and item."""
    data, node = parse_yaml_nodes(text, str(path))
    lines: dict[Place, int] = {}
    if node is not None:
        _walk(path, node, (), lines)
    return data, lines


def _walk(path: Path, node: Any, place: Place, lines: dict[Place, int]) -> None:
    """Of yaml's nodes, whose ``id`` says what they are."""
    lines.setdefault(place, node.start_mark.line + 1)
    if node.id == "scalar" and CONTROL.search(node.value):
        what = f"{_spell(place)}: " if place else ""
        raise BadInput(
            f"{path}:{node.start_mark.line + 1}: {what}holds a line "
            "break or a control character; write it on one line"
        )
    if node.id == "mapping":
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.id != "scalar" or CONTROL.search(key.value):
                raise BadInput(f"{path}:{line}: expected a name before the colon")
            child = (*place, key.value)
            if child in lines:
                raise BadInput(f"{path}:{line}: {_spell(child)}: given twice (first in line {lines[child]})")
            lines[child] = line
            _walk(path, value, child, lines)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            _walk(path, value, (*place, index), lines)


def _override(data: dict[str, Any], text: str) -> Place:
    """``evaluate.tokens=20000`` sets that key; the value is YAML. Returns the key's place."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"--set {text!r}: expected key=value, e.g. evaluate.tokens=20000")
    parsed = parse_yaml(value, f"--set {text!r}") if value.strip() else None
    place: Place = tuple(
        int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in key.strip().split(".")
    )
    here: Any = data
    for part, following in zip(place, [*place[1:], None], strict=True):
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                raise BadInput(
                    f"--set {text!r}: {part} is not one of the {len(here)} items there (counted from 0)"
                )
        elif not isinstance(here, dict):
            raise BadInput(
                f"--set {text!r}: {part} is inside a plain value; make that a mapping in the job file first"
            )
        if following is None:
            here[part] = parsed
        else:
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
            here = here[part]
    return place


def _explain(
    path: Path, error: ValidationError, data: Any, lines: dict[Place, int], changed: Sequence[Place]
) -> str:
    errors = error.errors()
    # A typo explains a key said to be missing, so it comes first.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place = _place_in(data, first["loc"])
    given = next((p for p in changed if place[: len(p)] == p or p[: len(place)] == place), None)
    where = f"--set {_spell(given)}" if given else f"{path}:{_line(place, lines)}"
    name = _spell(place)
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_nearest(place)}"
    elif first["type"] == "missing":
        message = "is missing"
        name = _spell((*place, first["loc"][-1])) if not place or place[-1] != first["loc"][-1] else name
    else:
        message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {name + ': ' if name else ''}{printable(message, 1000)}{more}"


def _place_in(data: Any, loc: tuple[Any, ...]) -> Place:
    """The part of pydantic's location that exists in the data: it also names union branches and shorthand,
    which do not."""
    place: Place = ()
    for part in loc:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            place, data = (*place, part), data[part]
    return place


def _line(place: Place, lines: dict[Place, int]) -> int:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _nearest(place: Place) -> str:
    """(did you mean ...?) among the keys known at that level."""
    known = list(_fields_at(Job, place[:-1]))
    close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f"; known here: {', '.join(known)}"


def _fields_at(model: type[BaseModel], place: Place) -> Sequence[str]:
    """Field names of the model that ``place`` leads to."""
    for part in place:
        if isinstance(part, int):
            continue
        inner = _model_in(model.model_fields[part].annotation) if part in model.model_fields else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _spell(place: Place) -> str:
    return printable(".".join(str(part) for part in place), 200)
