"""Token windows of the calibration text: what every engine and the importance matrix calibrate on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.artifact.artifact import CalibrationRecord, Note
from quantize.calibration.texts import calibration_text
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput
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


def load_calibration(checkpoint: Checkpoint, options: CalibrationOptions) -> Calibration:
    """Tokenize the whole text with the source's own tokenizer, draw non-overlapping windows by seed.

    Errors: BadInput where the text has fewer tokens than asked for, in at least one window.
    """
    found = calibration_text(options.source, checkpoint.folder)
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    ids = np.asarray(tokenizer.encode(found.body, add_special=False), dtype=np.int64)
    length = min(options.sequence_length, context_length(checkpoint.config) or options.sequence_length)
    available, wanted = len(ids) // length, max(1, options.tokens // length)
    if available < wanted:
        raise BadInput(
            f"calibration {options.source}: has {len(ids)} tokens, fewer than the "
            f"{options.tokens} asked for; use a longer text or a smaller --calibration-tokens"
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
            f"windows of {length} tokens, the most that the "
            f"model allows, instead of {options.sequence_length}"
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
