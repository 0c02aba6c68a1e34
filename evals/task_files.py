"""Tasks as a person names them: lm-eval's own names, its names on local data (``NAME=PATH``), suites of them,
a YAML task of lm-eval, a local ``.jsonl``, or HellaSwag's text form.

A ``.jsonl`` holds one item per line, all of one form:

- ``{"query", "choices", "gold"}``: which choice follows the query;
- ``{"context_options", "continuation", "gold"}``: which context makes the continuation likelier;
- ``{"context", "continuation"}``: whether greedy decoding gives the continuation.

``"delimiter"`` (default one space, the same in every item) stands between context and choice. Every file
becomes a task of lm-eval, which counts.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.heldout_task import held_out_task
from evals.local_task import LocalTask
from evals.task_code import check_config, read_task_file
from evals.task_data import SUITES, leaves, with_data
from quantize.documents import read_document, read_rows
from quantize.errors import BadInput
from quantize.files import typed_path
from quantize.packages import install_command

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

FORMS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "choices": {"query": str, "choices": list, "gold": int},
    "contexts": {"context_options": list, "continuation": str, "gold": int},
    "continuation": {"context": str, "continuation": str},
}
HELD_OUT = "held-out"


@dataclass(frozen=True)
class HarnessTask:
    """A task that lm-eval knows by name, or the path of a YAML task, and the ``manager`` to load it with.
    ``path``: of its data, where they are not lm-eval's."""

    name: str
    manager: "TaskManager"
    path: Path | None = None
    typed: str = ""

    @property
    def is_file(self) -> bool:
        """A YAML task of the person's own, or of somebody else's."""
        return self.name.endswith((".yaml", ".yml"))


Task = LocalTask | HarnessTask


def parse_tasks(
    names: Sequence[str],
    say: Callable[[str], None],
    allow_code: bool = False,
    allow_task_code: bool = False,
    scratch: Path | None = None,
) -> list[Task]:
    """``allow_code``: tasks may run the code that a model writes. ``allow_task_code``: and their own code.
    ``scratch``: for definitions and data of tasks of lm-eval that are given other data.

    Errors: BadInput naming the file and line that is malformed, or for an unknown name the nearest known
    ones.
    """
    found: list[Task] = []
    for typed in names:
        suite, equals, data = typed.partition("=")
        if typed_path(typed).exists():  # a path may hold an equals sign
            suite, equals = typed, ""
        for member in SUITES.get(suite, (suite,)):
            given = typed_path(data) if equals else None
            task = _parse(member, given, say, (allow_task_code, allow_code), scratch)
            task = replace(task, typed=typed if member == suite else member)
            if task.name in {t.name for t in found}:
                raise BadInput(
                    f"--tasks: {task.name} is listed twice; name the files differently or list it once"
                )
            found.append(task)
    return found


def _parse(
    name: str,
    data: Path | None,
    say: Callable[[str], None],
    allowed: tuple[bool, bool],
    scratch: Path | None,
) -> Task:
    path = typed_path(name)
    if data is not None:
        return _named_on(name, data, allowed, scratch)
    if name == HELD_OUT:
        say("tasks: heldout, made from the demo's held-out text (it differs by Python release)")
        return held_out_task()
    if path.suffix in (".jsonl", ".txt"):
        return read_items(path)
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path, allowed)
    return known_task(name, allowed)


def read_items(path: Path) -> LocalTask:
    """Items in a form of ours. Errors: BadInput with the line that is malformed."""
    return read_hellaswag(path) if path.suffix == ".txt" else read_jsonl(path)


def _named_on(name: str, data: Path, allowed: tuple[bool, bool], scratch: Path | None) -> Task:
    """lm-eval's task ``name`` on local data; a file whose items are in a form of ours needs no definition but
    its own."""
    here = [data] if data.is_file() else [data / f"{name}{suffix}" for suffix in (".jsonl", ".txt")]
    for path in here:
        if path.suffix == ".txt" and path.is_file():
            return replace(read_hellaswag(path), name=name)
        if path.suffix == ".jsonl" and path.is_file() and _has_our_form(path):
            return replace(read_jsonl(path), name=name)
    task = known_task(name, allowed)
    return HarnessTask(name, with_data(task.manager, name, data, scratch), data)


def _has_our_form(path: Path) -> bool:
    try:
        _, first = next(read_rows(path, read_document(path)), ("", None))
    except BadInput:
        return False
    return isinstance(first, dict) and any(set(keys) <= set(first) for keys in FORMS.values())


def read_jsonl(path: Path) -> LocalTask:
    """Errors: BadInput with the line that is malformed."""
    items: list[dict[str, Any]] = []
    form, delimiter = "", " "
    for where, item in read_rows(path, read_document(path)):
        if not isinstance(item, dict):
            raise BadInput(f"{where}: expected an object, got {type(item).__name__}")
        if not items:
            form = _form_of(item, where)
            delimiter = str(item.get("delimiter", " "))
        _check_item(item, form, where)
        if str(item.get("delimiter", " ")) != delimiter:
            raise BadInput(
                f"{where}: delimiter {item.get('delimiter')!r} differs "
                f"from {delimiter!r} above; use one delimiter per file"
            )
        items.append({key: item[key] for key in FORMS[form]})
    if not items:
        raise BadInput(f"{path}: has no items; expected one JSON object per line")
    return LocalTask(path.stem, path, form, tuple(items), delimiter)


def _form_of(item: dict[str, Any], where: str) -> str:
    for form, keys in FORMS.items():
        if set(keys) <= set(item):
            return form
    expected = " or ".join("{" + ", ".join(keys) + "}" for keys in FORMS.values())
    raise BadInput(f"{where}: has the keys {', '.join(item) or 'none'}; expected {expected}")


def _check_item(item: dict[str, Any], form: str, where: str) -> None:
    for key, kind in FORMS[form].items():
        if key not in item:
            raise BadInput(f"{where}: lacks {key!r}, which the first item has")
        value = item[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadInput(
                f"{where}: {key} must be "
                f"{kind.__name__ if isinstance(kind, type) else kind}, is {value!r:.40}"
            )
    options = (
        item.get("choices")
        if form == "choices"
        else item.get("context_options")
        if form == "contexts"
        else None
    )
    if options is None:
        if not item["continuation"].strip():
            raise BadInput(f"{where}: continuation is empty")
        return
    if len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        raise BadInput(f"{where}: expected at least two non-empty strings to choose from")
    if not 0 <= item["gold"] < len(options):
        raise BadInput(f"{where}: gold is {item['gold']}, expected 0 to {len(options) - 1}")


def read_hellaswag(path: Path) -> LocalTask:
    """The text form that llama-perplexity --hellaswag reads: six lines an item, query, gold, four endings."""
    lines = read_document(path).lines
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % 6:
        raise BadInput(
            f"{path}: has {len(lines)} lines, not a multiple of 6 "
            "(query, gold, four endings); use .jsonl for other forms"
        )
    items = []
    for start in range(0, len(lines), 6):
        gold = lines[start + 1].strip()
        if gold not in ("0", "1", "2", "3"):
            raise BadInput(
                f"{path}:{start + 2}: expected the number of the right ending (0 to 3), got {gold!r:.40}"
            )
        items.append({"query": lines[start], "choices": lines[start + 2 : start + 6], "gold": int(gold)})
    return LocalTask(path.stem, path, "choices", tuple(items))


def read_yaml(path: Path, allowed: tuple[bool, bool] = (False, False)) -> HarnessTask:
    """``allowed``: to run its own code, and the code that a model writes."""
    document = read_task_file(path, *allowed)
    if not {"task", "group", "include"} & set(document):
        raise BadInput(f"{path}: not a task of lm-eval (no 'task' key); see its docs, or use a .jsonl")
    return HarnessTask(str(path), task_manager(isinstance(document.get("task"), list) or "group" in document))


@cache
def task_manager(names: bool) -> "TaskManager":
    """lm-eval's loader of tasks; with ``names`` it knows lm-eval's own, whose thousands of files it reads
    first (some 10 s).

    Errors: BadInput where lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise BadInput(f"--tasks needs lm-eval; install with: {install_command('tasks')}") from None
    return TaskManager(include_defaults=names)


def known_task(name: str, allowed: tuple[bool, bool] = (False, False)) -> HarnessTask:
    if "/" in name or "." in name:
        raise BadInput(f"unknown task {name!r}; a local task is a .jsonl, a .yaml or HellaSwag's .txt")
    manager = task_manager(True)
    if name not in manager.task_index:
        close = difflib.get_close_matches(name, [*SUITES, HELD_OUT, *manager.all_tasks], n=3, cutoff=0.6)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        suites = ", ".join(SUITES)
        raise BadInput(
            f"unknown task {name!r}{hint}; suites are {suites}, and `lm-eval ls tasks` lists lm-eval's names"
        )
    for leaf, _, config in leaves(manager, name):
        check_config(leaf, config, *allowed)
    return HarnessTask(name, manager)
