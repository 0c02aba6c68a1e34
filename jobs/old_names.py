"""Keys of ``evaluate:`` as they were called before they said what the command line says.

``limit`` was tokens of the text and ``task_limit`` items of each task; the command line has ``--tokens`` and
``--limit`` for those. A section that says ``tokens``, be it ``tokens: null``, is written in today's names.
"""

from collections.abc import Mapping
from typing import Any

from quantize.errors import BadInput

SECTION = "evaluate"
Place = tuple[str | int, ...]


def old_names(data: Mapping[str, Any], where: str) -> tuple[dict[str, str], str]:
    """Old name -> today's, of the keys that the section says in the old way; and what to tell the person, or
    "". ``where``: the section, for errors. Errors: BadInput where both ways are used at once."""
    section = data.get(SECTION)
    if not isinstance(section, dict):
        return {}, ""
    given = {key for key in ("limit", "task_limit") if section.get(key) is not None}
    if "tokens" in section:
        if given == {"limit", "task_limit"}:
            raise BadInput(f"{where}: task_limit is called limit now; give one of them")
        names = {"task_limit": "limit"} if "task_limit" in section else {}
    elif "task_limit" in section or (given and not section.get("tasks")):
        names = {old: new for old, new in (("limit", "tokens"), ("task_limit", "limit")) if old in section}
    elif given and section.get("text"):
        count = section["limit"]
        return {}, (
            f"warning: {where}: limit: {count} is items of each task, as --limit is; for tokens of the text, "
            f"its old meaning, write tokens: {count} (tokens: null says that the whole text is meant)"
        )
    else:
        names = {}
    said = ", ".join(f"{new}: {section[old]} in place of {old}" for old, new in names.items())
    return names, f"warning: {where}: write {said}, as on the command line" if names else ""


def renamed(place: Place, names: Mapping[str, str]) -> Place:
    """``place`` by today's names."""
    if len(place) > 1 and place[0] == SECTION:
        return (SECTION, names.get(str(place[1]), place[1]), *place[2:])
    return place
