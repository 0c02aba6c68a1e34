"""Texts to calibrate and to evaluate on. The built-in one needs no network: the standard library's
documentation strings."""

import ast
import inspect
import sysconfig
from pathlib import Path

from quantize.chat.conversations import Text, text_of_rows
from quantize.documents import ROWS, read_document, read_rows
from quantize.errors import BadInput, StepFailed, first_line


def stdlib_documentation() -> str:
    """The documentation strings of the Python standard library, read from its sources.

    Without ``pydoc_data``, whose topics are the demo's held-out text, and without tests and vendored
    packages.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "lib2to3",
        "idlelib",
        "ensurepip",
        "__pycache__",
    }
    parts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts):
            continue
        parts += documentation_strings(path)
    return "\n\n".join(parts)


def documentation_strings(path: Path) -> list[str]:
    """Those of one source file that are longer than 60 characters, breadth first; none where it does not
    parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) > 60:
                parts.append(inspect.cleandoc(text))
    return parts


def held_out_text() -> str:
    """The demo's evaluation text: the topics of ``pydoc_data`` (they differ by Python release)."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def calibration_text(source: str, folder: Path) -> Text:
    """The text that ``source`` names: ``stdlib``, a text file, rows in a file (.jsonl, .json, .csv) or of a
    Hub dataset. ``folder``: the model's; its chat template renders conversations.

    Errors: BadInput where it is none of these, or has no text; StepFailed where the Hub fails.
    """
    if source == "stdlib":
        return Text(stdlib_documentation())
    path = Path(source)
    if path.exists() or path.suffix in (".txt", ".md", ".utf8", ".raw", *ROWS):
        return read_text(path, folder)
    return _dataset_text(source, folder)


def read_text(path: Path, folder: Path | None) -> Text:
    """A text file, or rows in one (.jsonl, .json, .csv), conversations by the chat template of the model in
    ``folder``.

    Errors: BadInput.
    """
    document = read_document(path)
    if path.suffix in ROWS:
        return text_of_rows(str(path), read_rows(path, document), folder, document.read_as)
    return Text(document.text, document.read_as)


def _dataset_text(name: str, folder: Path) -> Text:
    """The train split of a Hub dataset (``org/name[:config]``)."""
    if "/" not in name:
        raise BadInput(
            f"calibration {name!r}: neither a text file nor a Hub dataset id (org/name[:config]) nor 'stdlib'"
        )
    from datasets import load_dataset

    dataset, _, config = name.partition(":")
    try:
        rows = load_dataset(dataset, config or None, split="train")
    except (OSError, RuntimeError, ValueError) as error:
        raise StepFailed(
            f"calibration dataset {name}: cannot be loaded ({first_line(error)}); give a text file"
        ) from None
    where = f"calibration dataset {name}"
    return text_of_rows(where, ((f"{where}: row {number}", row) for number, row in enumerate(rows)), folder)
