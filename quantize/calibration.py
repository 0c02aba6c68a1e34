"""Calibration text -> token windows. The built-in text needs no network: the standard library's documentation strings."""

import ast
import hashlib
import inspect
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantize.artifact import CalibrationRecord
from quantize.checkpoint import Checkpoint
from quantize.errors import BadInput, StepFailed
from quantize.recipe import CalibrationOptions


@dataclass(frozen=True)
class Calibration:
    """``ids``: (rows, sequence_length) int64 windows of the calibration text, drawn by seed."""

    ids: np.ndarray
    record: CalibrationRecord

    @property
    def summary(self) -> str:
        r = self.record
        return (
            f"calibration: {r.source}, {r.tokens} tokens in windows of {r.sequence_length}, seed {r.seed}, sha256 {r.sha256[:12]}"
        )


def stdlib_documentation() -> str:
    """The documentation strings of the Python standard library, read from its sources.

    Without ``pydoc_data``, whose topics are the demo's held-out text, and without tests and vendored packages.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"pydoc_data", "site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib", "ensurepip", "__pycache__"}
    parts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts):
            continue
        parts += documentation_strings(path)
    return "\n\n".join(parts)


def documentation_strings(path: Path) -> list[str]:
    """Those of one source file that are longer than 60 characters, breadth first; none where it does not parse."""
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


def read_text(path: Path) -> str:
    """Errors: BadInput where the file is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such text file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder; give a UTF-8 text file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    if not text.strip():
        raise BadInput(f"{path}: is empty; give a text file with some text")
    return text


def calibration_text(source: str) -> str:
    if source == "stdlib":
        return stdlib_documentation()
    path = Path(source)
    if path.exists() or path.suffix in (".txt", ".md", ".utf8", ".raw"):
        return read_text(path)
    return _dataset_text(source)


def _dataset_text(name: str) -> str:
    """The train split of a Hub dataset (``org/name[:config]``), its ``text`` column joined by blank lines."""
    if "/" not in name:
        raise BadInput(f"calibration {name!r}: neither a text file nor a Hub dataset id (org/name[:config]) nor 'stdlib'")
    from datasets import load_dataset

    dataset, _, config = name.partition(":")
    try:
        rows = load_dataset(dataset, config or None, split="train")
    except (OSError, RuntimeError, ValueError) as error:
        raise StepFailed(
            f"calibration dataset {name}: cannot be loaded ({str(error).splitlines()[0]}); give a text file"
        ) from None
    column = next((c for c in ("text", "content", "prompt") if c in rows.column_names), None)
    if column is None:
        raise BadInput(f"calibration dataset {name}: no text column among {', '.join(rows.column_names)}; give a text file")
    return "\n\n".join(text for text in rows[column] if text)


def load_calibration(checkpoint: Checkpoint, options: CalibrationOptions) -> Calibration:
    """Tokenize the whole text with the source's own tokenizer, draw non-overlapping windows by seed.

    Errors: BadInput where the text gives fewer than the tokens asked for in at least one window.
    """
    from quantize.tokenizer import SourceTokenizer

    text = calibration_text(options.source)
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    ids = np.asarray(tokenizer.encode(text, add_special=False), dtype=np.int64)
    length = min(options.sequence_length, int(checkpoint.config.get("max_position_embeddings") or options.sequence_length))
    available, wanted = len(ids) // length, max(1, options.tokens // length)
    if available < wanted:
        raise BadInput(
            f"calibration {options.source}: gives {len(ids)} tokens, fewer than the {options.tokens} asked for; "
            "use a longer text or a smaller --calibration-tokens"
        )
    chosen = np.sort(np.random.default_rng(options.seed).choice(available, wanted, replace=False))
    rows = ids[: available * length].reshape(available, length)[chosen]
    record = CalibrationRecord(
        source=options.source,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        ids_sha256=hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        tokens=rows.size,
        sequence_length=length,
        seed=options.seed,
    )
    return Calibration(rows, record)
