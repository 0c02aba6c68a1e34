"""What ``quantwright verify`` is asked about, opened once, and how a program opens it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import QuantwrightError
from quantize.inspection.reading import Reading
from quantize.recipe import RunOptions
from quantize.terminal import printable
from quantize.verification.process import Opened, Start
from quantize.verification.spill import Spill

PROMPT_TOKENS, TEXT_TOKENS = 16, 24


@dataclass
class Subject:
    """What is verified, opened."""

    path: Path
    gguf: Path | None
    storage: str
    source: Checkpoint | None
    run: RunOptions
    scratch: Path
    start: Start
    reading: Reading | None = None
    spill: Spill | None = None
    extra: frozenset[str] = frozenset()
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    small: Path | None = None


def text_of(subject: Subject, ids: Sequence[int]) -> str:
    whose = subject.source.folder if subject.source is not None else subject.small or subject.path
    try:
        return printable(SourceTokenizer.open(whose).decode(list(ids)), 400) if ids else ""
    except (QuantwrightError, OSError, ValueError, IndexError, OverflowError):
        return ""


def open_in(subject: Subject, name: str, exact: bool) -> Opened:
    folder = subject.scratch / f"{name}{'-exact' if exact else ''}"
    folder.mkdir()
    more: dict[str, Any] = {
        "program": name,
        "prompt": subject.rows[0, :PROMPT_TOKENS].tolist(),
        "tokens": min(TEXT_TOKENS, subject.rows.shape[1] - PROMPT_TOKENS),
        "context": subject.rows.shape[1],
        "small": str(subject.small or ""),
    }
    if name == "llama.cpp" and subject.source is not None:
        more["split_as"] = str(subject.source.folder)
    return Opened(
        subject.path, subject.run, subject.rows, folder, exact=exact, start=subject.start, more=more
    )
