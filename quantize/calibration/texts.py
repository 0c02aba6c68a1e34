"""Texts to calibrate and to evaluate on. The built-in one needs no network: the standard library's
documentation strings."""

import ast
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from quantize.calibration.kept import kept_text
from quantize.calibration.sources import STDLIB, Dataset, files_below
from quantize.chat.conversations import Text, text_of_rows
from quantize.documents import ROWS, read_document, read_rows
from quantize.errors import BadInput, StepFailed, first_line
from quantize.files import typed_path

#: names of files that hold text and nothing else
PLAIN = (".txt", ".md", ".utf8", ".raw")
#: fields of Python's statements that hold statements, in their order
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def stdlib_documentation() -> str:
    """The documentation strings of the Python standard library, read from its sources, or as an earlier run
    that read the same files kept them in the user's cache.

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
    paths = [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts)]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return kept_text(
        {"stdlib": sys.version, "files": files},
        lambda: "\n\n".join(part for path in paths for part in documentation_strings(path)),
    )


def documentation_strings(path: Path) -> list[str]:
    """Those of one source file that are longer than 60 characters, breadth first; none where it does not
    parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []
    parts: list[str] = []
    level: list[ast.AST] = [tree]
    while level:
        below: list[ast.AST] = []
        for node in level:
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node, clean=False)
                if text and len(text) > 60:
                    parts.append(inspect.cleandoc(text))
            for block in BLOCKS:  # expressions hold no definitions: ast.walk takes twice as long
                below += getattr(node, block, ())
        level = below
    return parts


def held_out_text() -> str:
    """The demo's evaluation text: the topics of ``pydoc_data`` (they differ by Python release)."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def calibration_text(place: str, folder: Path) -> Text:
    """The text at ``place``: ``stdlib``, a text file, rows in a file (.jsonl, .json, .csv), a folder of such
    files, or a Hub dataset. ``folder``: the model's; its chat template renders conversations.

    Errors: BadInput where it is none of these, or has no text; StepFailed where the Hub fails.
    """
    if place == STDLIB:
        return Text(stdlib_documentation())
    path = typed_path(place)
    if path.is_dir():
        return _folder_text(path, folder)
    if path.exists() or path.suffix in (*PLAIN, *ROWS):
        return read_text(path, folder)
    if path.is_absolute() or place.startswith((".", "~")) or (len(path.parts) > 1 and path.parent.is_dir()):
        raise BadInput(f"calibration {place}: no such text file or folder")
    return _dataset_text(place, folder)


def read_text(path: Path, folder: Path | None) -> Text:
    """A text file, or rows in one (.jsonl, .json, .csv), conversations by the chat template of the model in
    ``folder``.

    Errors: BadInput.
    """
    document = read_document(path)
    if path.suffix in ROWS:
        return text_of_rows(str(path), read_rows(path, document), folder, document.read_as)
    return Text(document.text, document.read_as)


def _folder_text(place: Path, folder: Path) -> Text:
    """Every text below ``place``, in the order of their names; hidden files, and those that are no text, are
    left out."""
    bodies, said, left = [], [], []
    for path in files_below(place):
        try:
            text = read_text(path, folder)
        except BadInput as error:
            if path.suffix in (*PLAIN, *ROWS) and path.stat().st_size:
                raise
            left.append(str(error))
            continue
        bodies.append(text.body)
        said += [f"{path.relative_to(place)} as {text.read_as}"] if text.read_as else []
    if not bodies:
        raise BadInput(f"calibration {place}: holds no text file; give a folder of text files, or one file")
    if left:
        said.append(f"without {len(left)} files that are no text or empty")
    some = f", and {len(said) - 3} more" if len(said) > 3 else ""
    counted = f"{len(bodies)} file{'s' if len(bodies) > 1 else ''}"
    return Text("\n\n".join(bodies), "; ".join([counted, *said[:3]]) + some)


def _dataset_text(place: str, folder: Path) -> Text:
    """Rows of a Hub dataset, of the column that ``place`` names, or of those that hold texts."""
    wanted, where = Dataset.parse(place), f"calibration dataset {place}"
    from datasets import load_dataset

    try:
        rows = load_dataset(wanted.id, wanted.config or None, split=wanted.split or "train")
    except (OSError, RuntimeError, ValueError) as error:
        raise StepFailed(f"{where}: cannot be loaded ({first_line(error)}); give a text file") from None
    return text_of_rows(where, _rows(rows, wanted.column, where), folder)


def _rows(rows: Iterable[Any], column: str, where: str) -> Iterator[tuple[str, Any]]:
    """Errors: BadInput where they have no ``column``."""
    for number, row in enumerate(rows):
        named = f"{where}: row {number}"
        if not column:
            yield named, row
            continue
        if column not in row:
            raise BadInput(f"{where}: has no column {column!r}, only {', '.join(map(str, row))}")
        value = row[column]
        if not (value is None or isinstance(value, (str, list))):
            raise BadInput(f"{named}: column {column!r} holds {type(value).__name__}, not texts or messages")
        yield named, {"messages": value} if isinstance(value, list) else {"text": value or ""}
