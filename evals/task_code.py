"""Code in lm-eval's task files: what a local one would run is found before lm-eval opens it, and refused
unless it is allowed.

Ways to code: ``!function`` names Python, a metric that lm-eval does not have is a script from the Hub
(``evaluate.load``), a template is a program. lm-eval's own task files are part of the installed package, and
their functions are theirs.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from quantize.chat.render import render_task
from quantize.code_guard import modules_cache, no_code_from
from quantize.documents import read_document
from quantize.errors import BadInput
from quantize.files import parse_yaml_nodes
from quantize.terminal import printable

FUNCTION = "!function"
ADVICE = "pass --allow-task-code to allow it"
#: datasets' ways to data that take a connection or a function
BUILDERS = ("generator", "iceberg", "spark", "sql")
MOST_INCLUDES = 20


def read_task_file(
    path: Path, allowed: bool, run_models_code: bool, seen: frozenset[Path] = frozenset()
) -> dict[str, Any]:
    """A YAML task with every file that it includes.

    ``allowed``: it may run its own Python. ``run_models_code``: it may run the code that a model writes.

    Errors: BadInput, naming file and line, where it is not a task, or would run what is not allowed.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such task file")
    document, node = parse_yaml_nodes(read_document(path).text, str(path), ignored=(FUNCTION,))
    if not isinstance(document, dict):
        raise BadInput(f"{path}: not a task of lm-eval (no 'task' key); see its docs, or use a .jsonl")
    if not allowed:
        for line, name in _functions(node):
            raise BadInput(
                f"{path}:{line}: runs its own Python ({FUNCTION} {printable(name, 100)}); {ADVICE}"
            )
    for part in _configs(document):
        check_config(str(path), part, allowed, run_models_code)
    included = document.get("include") or []
    seen |= {path.resolve()}
    for name in included if isinstance(included, list) else [included]:
        other = path.parent / str(name)
        if other.resolve() in seen or len(seen) > MOST_INCLUDES:
            raise BadInput(
                f"{path}: includes {printable(name, 200)}, which includes it again, or too many others"
            )
        if of_lm_eval(other):
            from lm_eval.tasks._yaml_loader import load_yaml

            check_config(str(path), load_yaml(other, resolve_func=False), allowed, run_models_code)
        else:
            read_task_file(other, allowed, run_models_code, seen)
    return document


def of_lm_eval(path: Path) -> bool:
    """Whether a file is one of the installed lm-eval's."""
    import lm_eval

    return path.resolve().is_relative_to(Path(lm_eval.__file__).resolve().parent)


def check_config(name: str, config: dict[str, Any], allowed: bool, run_models_code: bool) -> None:
    """Errors: BadInput where task ``name`` would run what it may not."""
    if config.get("unsafe_code") and not run_models_code:
        raise BadInput(
            f"task {name} runs the code that a model writes, on "
            "this machine; pass --allow-code-execution to allow it"
        )
    if allowed:
        return
    if config.get("dataset_path") in BUILDERS:
        raise BadInput(
            f"task {name}: reads its data through "
            f"{config['dataset_path']!r}, which can run any code; {ADVICE}"
        )
    if "process_results" in config:  # computes the metrics itself; their names are names
        return
    metrics = config.get("metric_list") or []
    for entry in metrics if isinstance(metrics, list) else []:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if (
            isinstance(metric, str)
            and (entry.get("hf_evaluate") or metric not in _metrics())
            and not _function_of_lm_eval(metric)
        ):
            raise BadInput(
                f"task {name}: its metric {printable(metric, 100)!r} is a script from the Hub; {ADVICE}"
            )


def _metrics() -> dict[str, Any]:
    """Those that are lm-eval's own."""
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    found: dict[str, Any] = dict(metric_registry)
    return found


def _function_of_lm_eval(metric: str) -> bool:
    """``/…/lm_eval/tasks/humaneval/utils.pass_at_k``: how lm-eval spells a function that it should not
    resolve."""
    module = Path(metric.rpartition(".")[0] + ".py")
    return module.is_absolute() and ".." not in module.parts and module.is_file() and of_lm_eval(module)


def _functions(node: Any) -> Iterator[tuple[int, str]]:
    """(line, name) of each ``!function`` below a node of YAML."""
    todo = [node]
    while todo:
        one = todo.pop()
        if one is None:
            continue
        if one.tag == FUNCTION:
            yield one.start_mark.line + 1, one.value
        elif isinstance(one.value, list):
            todo += [inner for pair in one.value for inner in (pair if isinstance(pair, tuple) else (pair,))]


def _configs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document and the tasks written out inside a group."""
    yield document
    members = document.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            yield from _configs(member)


@contextlib.contextmanager
def no_task_code(name: str, allowed: bool, local: bool) -> Iterator[None]:
    """While lm-eval measures a task whose code is not ``allowed``: no script of the Hub's runs, and the
    templates of a ``local`` file are rendered apart, within limits.

    Errors: BadInput where a template does not keep to them; Unsupported where a script was about to run.
    """
    from lm_eval import utils

    def apply_template(template: str, doc: dict[str, Any]) -> str:
        return render_task(template, doc, where=f"task {name}")

    scripts = (modules_cache() / "evaluate_modules", modules_cache() / "datasets_modules")
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_code_from(*scripts, whose=f"task {name}", advice=ADVICE, trusted=allowed))
        if local and not allowed:
            stack.enter_context(mock.patch.object(utils, "apply_template", apply_template))
        yield
