"""Suites of lm-eval's tasks by one name, and lm-eval's tasks on data that lies on disk:
``gsm8k=gsm8k.jsonl``, ``cmmlu=FOLDER``.

The task stays lm-eval's own definition (prompt, few-shot examples, filters, metric); only where its data come
from is replaced, by a YAML file that includes the original.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.documents import read_document, read_rows
from quantize.errors import BadInput
from quantize.staging import held_until_exit

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SUITES = {
    "quick": ("arc_easy", "piqa", "winogrande", "lambada_openai"),
    "open-llm": ("openllm",),
    "chinese": ("ceval-valid", "cmmlu"),
    "code": ("humaneval",),
}
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SPLITS = ("test_split", "validation_split", "fewshot_split", "training_split")


def leaves(manager: "TaskManager", name: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, YAML file, its content with includes) of each task of ``name`` (a task, group or tag)."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        members: list[Any] = sorted(entry.tags or ())
    elif entry.yaml_path is None:
        return
    else:
        config = load_yaml(entry.yaml_path, resolve_func=False)
        if entry.kind.name != "GROUP":
            yield name, Path(entry.yaml_path), config
            return
        members = config["task"]
    for member in members:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str):
            yield from leaves(manager, inner)
        for one in inner if isinstance(inner, list) else ():
            yield from leaves(manager, one)


def with_data(manager: "TaskManager", name: str, path: Path, scratch: Path | None = None) -> "TaskManager":
    """A manager in which every task of ``name`` reads ``path``: a file, or a folder with a file for each
    task. Its definition lies under ``scratch`` as long as the process lives.

    In a folder, the data of split S of task T lie in ``T/S``, ``S/T`` or ``T_S``, or for all splits in ``T``,
    with the suffix .jsonl, .json, .csv or .parquet; T is the task's name or its dataset's (``agronomy`` of
    ``cmmlu_agronomy``). Few-shot examples that have no data of their own are drawn from what is measured,
    without the item itself.

    Errors: BadInput where a file is missing.
    """
    import yaml
    from lm_eval.tasks._index import TaskIndex

    folder = held_until_exit("tasks", scratch)
    changed = dict(manager.task_index)
    found = list(leaves(manager, name))
    if not found or (path.is_file() and len(found) > 1):
        what = f"{len(found)} tasks" if found else "no YAML task"
        raise BadInput(
            f"--tasks {name}={path}: {name} is {what} of lm-eval; give a folder with a file for each"
        )
    for leaf, original, config in found:
        document = {"include": str(original), "task": leaf, **_data(path, leaf, config, folder)}
        target = folder / f"{leaf}.yaml"
        target.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
        entry = TaskIndex.entry_from_path(target)
        assert entry is not None
        changed[leaf] = entry
    altered = copy.copy(manager)
    altered._index = changed
    return altered


def _data(path: Path, leaf: str, config: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """What replaces the data of one task."""
    measured = config.get("test_split") or config.get("validation_split")
    if not measured:
        raise BadInput(
            f"--tasks {leaf}={path}: the task says neither test_split "
            "nor validation_split, so its data cannot be replaced"
        )
    names = [n for n in (leaf, config.get("dataset_name")) if n]
    files: dict[str, Path] = {}
    if path.is_file():
        files[measured] = path
    else:
        for split in {config[key] for key in SPLITS if config.get(key)}:
            places = [p for n in names for p in (f"{n}/{split}", f"{split}/{n}", f"{n}_{split}")]
            if file := _first(path, places):
                files[split] = file
        if measured not in files:
            files[measured] = _first(path, names) or _missing(path, leaf, names, measured)
    data = {split: _in_harness_form(file, scratch).resolve() for split, file in files.items()}
    kinds = {"json" if file.suffix in (".jsonl", ".json") else file.suffix[1:] for file in data.values()}
    if kinds not in ({"json"}, {"parquet"}):
        raise BadInput(f"--tasks {leaf}={path}: expected files of one kind, .jsonl, .json, .csv or .parquet")
    replaced: dict[str, Any] = {key: None for key in SPLITS if config.get(key) and config[key] not in files}
    if config.get("fewshot_split") not in files:
        replaced["fewshot_split"] = measured
    if measured in (config.get("fewshot_split"), replaced.get("fewshot_split")):
        replaced["test_split"] = (
            measured  # lm-eval never uses an item as its own example if they come from this split
        )
    source = {"data_files": {split: str(file) for split, file in data.items()}}
    return replaced | {"dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": source}


def _first(folder: Path, places: list[str]) -> Path | None:
    found = (folder / f"{place}{suffix}" for place in places for suffix in SUFFIXES)
    return next((file for file in found if file.is_file()), None)


def _missing(path: Path, leaf: str, names: list[str], split: str) -> Path:
    if not path.exists():
        raise BadInput(f"--tasks: {path}: no such file or folder")
    raise BadInput(
        f"--tasks: {path}: holds no data of {leaf}; expected "
        f"{names[-1]}.jsonl, or {split}/{names[-1]}.csv, or the like"
    )


def _in_harness_form(file: Path, scratch: Path) -> Path:
    """The file, or what lm-eval's definitions can read in its place: of a CSV every value as text (datasets
    would guess types from the first rows), of GSM8K as llm-foundry keeps it (context, chain_of_thought,
    answer) question and answer, of what is not UTF-8 with LF line ends (``quantize.documents``) that."""
    if file.suffix == ".parquet":
        return file
    document = read_document(file)
    name = f"{hashlib.sha256(str(file).encode()).hexdigest()[:8]}-{file.name}"
    if file.suffix == ".json":
        return _written(scratch / name, document.text) if document.read_as else file
    items = [item for _, item in read_rows(file, document)]
    if not all(isinstance(item, dict) for item in items):
        raise BadInput(f"{file}: expected objects, one per line")
    if items and set(items[0]) == {"context", "chain_of_thought", "answer"}:
        items = [
            {"question": i["context"], "answer": f"{i['chain_of_thought']}\n#### {i['answer']}"}
            for i in items
        ]
    elif file.suffix != ".csv" and not document.read_as and "\n\n" not in document.text:
        return file
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return _written((scratch / name).with_suffix(".jsonl"), lines)


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
