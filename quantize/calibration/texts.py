"""Calibration text -> token windows. The built-in text needs no network: the standard library's documentation
strings."""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact.artifact import CalibrationRecord, Note
from quantize.chat.conversations import Text, text_of_rows
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.documents import ROWS, read_document, read_rows
from quantize.errors import BadInput, StepFailed
from quantize.recipe import CalibrationOptions


@dataclass(frozen=True)
class Calibration:
    """``ids``: (rows, sequence_length) int64 windows of the calibration text, drawn by seed. ``said``: what
    was assumed."""

    ids: np.ndarray
    record: CalibrationRecord
    said: tuple[str, ...] = ()

    @property
    def notes(self) -> list[Note]:
        return [Note(tensor="*", what="calibration", why=words) for words in self.said]

    @property
    def summary(self) -> str:
        r = self.record
        return (
            f"calibration: {r.source}, {r.tokens} tokens in windows of {r.sequence_length}, seed "
            f"{r.seed}, sha256 {r.sha256[:12]}"
        )


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
    """What ``source`` stands for: ``stdlib``, a text file, rows in a file (.jsonl, .json, .csv) or of a Hub
    dataset. ``folder``: of the model, whose chat template conversations are rendered by.

    Errors: BadInput where it is none of these, or holds nothing that can be calibrated on; StepFailed where
    the Hub fails.
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
            f"calibration dataset {name}: cannot be loaded ({str(error).splitlines()[0]}); give a text file"
        ) from None
    where = f"calibration dataset {name}"
    return text_of_rows(where, ((f"{where}: row {number}", row) for number, row in enumerate(rows)), folder)


def load_calibration(checkpoint: Checkpoint, options: CalibrationOptions) -> Calibration:
    """Tokenize the whole text with the source's own tokenizer, draw non-overlapping windows by seed.

    Errors: BadInput where the text gives fewer than the tokens asked for in at least one window.
    """
    from quantize.checkpoint.tokenizer import SourceTokenizer

    found = calibration_text(options.source, checkpoint.folder)
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    ids = np.asarray(tokenizer.encode(found.body, add_special=False), dtype=np.int64)
    length = min(options.sequence_length, context_length(checkpoint.config) or options.sequence_length)
    available, wanted = len(ids) // length, max(1, options.tokens // length)
    if available < wanted:
        raise BadInput(
            f"calibration {options.source}: gives {len(ids)} tokens, fewer than the {options.tokens} asked "
            "for; "
            "use a longer text or a smaller --calibration-tokens"
        )
    chosen = np.sort(np.random.default_rng(options.seed).choice(available, wanted, replace=False))
    rows = ids[: available * length].reshape(available, length)[chosen]
    record = CalibrationRecord(
        source=options.source,
        sha256=hashlib.sha256(found.body.encode()).hexdigest(),
        ids_sha256=hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        tokens=rows.size,
        sequence_length=length,
        seed=options.seed,
    )
    said = [f"{options.source}: read as {found.read_as}"] if found.read_as else []
    if length < options.sequence_length:
        said.append(
            f"windows of {length} tokens, all that the model takes, in place of {options.sequence_length}"
        )
    return Calibration(rows, record, tuple(said))


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that a model takes, by its config or what that says of the text; 0 where neither tells."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"):
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0
