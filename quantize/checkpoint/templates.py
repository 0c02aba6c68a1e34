"""A checkpoint's chat templates, as its files hold them."""

from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.files import files_inside, inside, read_json, read_text

DEFAULT = "default"


def folder_templates(folder: Path) -> dict[str, str]:
    """Name -> template, ``default`` first: chat_template.jinja and additional_chat_templates, and only where
    there are none, what tokenizer_config.json (else chat_template.json, where processors keep theirs) says,
    as transformers has it.

    Errors: BadInput where the files are not what they should be.
    """
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        found[DEFAULT] = read_text(inside(folder, "chat_template.jinja"))
    more = folder / "additional_chat_templates"
    if more.is_dir():
        inside(folder, more.name)
        found |= {path.stem: read_text(path) for path in files_inside(more, "*.jinja")}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not found and (folder / name).is_file():
            found = _declared(folder / name, read_json(inside(folder, name)).get("chat_template"))
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def _declared(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value if isinstance(value, list) else [value]
    if not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("template"), str)
        for e in entries
    ):
        raise BadInput(f"{path}: chat_template: expected a text or a list of objects with name and template")
    return {entry["name"]: entry["template"] for entry in entries}
