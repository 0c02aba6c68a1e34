"""Token windows of the calibration text: what every engine and the importance matrix calibrate on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.artifact.artifact import CalibrationPart, CalibrationRecord, Note
from quantize.calibration.samples import own_samples, why_not_sampled
from quantize.calibration.sources import AUTO, OWN, STDLIB, Part, parse_sources
from quantize.calibration.texts import calibration_text
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput
from quantize.recipe import CalibrationOptions, RunOptions

#: part of the tokens that one of them may be: beyond it the text says nothing of what the model meets
MOST_OF_ONE = 0.9


@dataclass(frozen=True)
class Calibration:
    """``ids``: (rows, sequence_length) int64 windows of the calibration text, drawn by seed. ``said``: what
    was assumed. ``sampled_before``: the model's own samples among them were drawn by an earlier
    conversion."""

    ids: np.ndarray
    record: CalibrationRecord
    said: tuple[str, ...] = ()
    sampled_before: bool = False

    @property
    def notes(self) -> list[Note]:
        return [Note(tensor="*", what="calibration", why=words) for words in self.said]

    @property
    def summary(self) -> str:
        r = self.record
        shares = ", ".join(f"{part.tokens} of {part.source}" for part in r.parts)
        return (
            f"calibration: {r.source}, {r.tokens} tokens in windows of {r.sequence_length}"
            f"{f' ({shares})' if shares else ''}, seed {r.seed}, sha256 {r.sha256[:12]}"
        )


def load_calibration(
    checkpoint: Checkpoint, options: CalibrationOptions, run: RunOptions | None = None
) -> Calibration:
    """Windows of every part of ``options.source``, in proportion to their weights: of a text, tokenized whole
    with the source's own tokenizer, non-overlapping ones, drawn by seed; of the model's own samples (``run``
    says how they are made) all. Those of several parts are shuffled, by seed.

    Errors: BadInput where a text is missing or empty, has fewer tokens than asked for, or is one token; as
    ``own_samples`` and ``calibration_text``.
    """
    options, said = _resolved(checkpoint, options, run or RunOptions())
    parts = parse_sources(options.source)
    length = min(options.sequence_length, context_length(checkpoint.config) or options.sequence_length)
    counts = _shares(parts, max(1, options.tokens // length), options)
    drawn = [
        _draw(checkpoint, part, number, rows, length, options, run or RunOptions())
        for number, (part, rows) in enumerate(zip(parts, counts, strict=True))
    ]
    rows = np.concatenate([each.rows for each in drawn])
    if len(drawn) > 1:
        rows = np.random.default_rng(options.seed).permutation(rows)
    _check_various(rows, options.source, checkpoint)
    hashes = [each.sha256 for each in drawn]
    record = CalibrationRecord(
        source=options.source,
        sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        ids_sha256=_ids_sha256(rows),
        tokens=rows.size,
        sequence_length=length,
        seed=options.seed,
        parts=tuple(
            CalibrationPart(source=part.place, tokens=each.rows.size, sha256=each.sha256)
            for part, each in zip(parts, drawn, strict=True)
        )
        if len(parts) > 1
        else (),
    )
    said += [words for each in drawn for words in each.said]
    if length < options.sequence_length:
        said.append(
            f"windows of {length} tokens, the most that the "
            f"model allows, instead of {options.sequence_length}"
        )
    return Calibration(rows, record, tuple(said), any(each.there for each in drawn))


def spread(windows: int, wanted: int) -> np.ndarray:
    """Numbers of ``wanted`` of ``windows`` windows (all where there are fewer), spread evenly over them."""
    return np.linspace(0, windows - 1, min(windows, wanted)).round().astype(int)


def _resolved(
    checkpoint: Checkpoint, options: CalibrationOptions, run: RunOptions
) -> tuple[CalibrationOptions, list[str]]:
    """``auto`` as what it is for this model here, and what is to be said of it."""
    if options.source != AUTO:
        return options, []
    why = why_not_sampled(checkpoint, run)
    said = [f"{STDLIB} in place of the model's own samples: {why}"] if why else []
    return options.model_copy(update={"source": STDLIB if why else OWN}), said


@dataclass(frozen=True)
class _Drawn:
    """``rows`` (windows, length); ``sha256``: of the text, of samples of their ids; ``there``: whether
    samples had been drawn before."""

    rows: np.ndarray
    sha256: str
    said: Sequence[str]
    there: bool = False


def _draw(
    checkpoint: Checkpoint,
    part: Part,
    number: int,
    wanted: int,
    length: int,
    options: CalibrationOptions,
    run: RunOptions,
) -> _Drawn:
    if part.place == OWN:
        rows, said, there = own_samples(checkpoint, wanted, length, options.seed, run)
        return _Drawn(rows, _ids_sha256(rows), said, there)
    found = calibration_text(part.place, checkpoint.folder)
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    ids = np.asarray(tokenizer.encode(found.body, add_special=False), dtype=np.int64)
    available = len(ids) // length
    if available < wanted:
        asked = options.tokens if options.source == part.place else wanted * length
        raise BadInput(
            f"calibration {part.place}: has {len(ids)} tokens, fewer than the "
            f"{asked} asked for; use a longer text or a smaller --calibration-tokens"
        )
    random = np.random.default_rng([options.seed, number] if number else options.seed)
    chosen = np.sort(random.choice(available, wanted, replace=False))
    rows = ids[: available * length].reshape(available, length)[chosen]
    said = [f"{part.place}: read as {found.read_as}"] if found.read_as else []
    return _Drawn(rows, hashlib.sha256(found.body.encode()).hexdigest(), said)


def _shares(parts: Sequence[Part], windows: int, options: CalibrationOptions) -> list[int]:
    """Windows of each part, by largest remainder. Errors: BadInput where a part gets none."""
    total = sum(part.weight for part in parts)
    exact = [windows * part.weight / total for part in parts]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: windows - sum(counts)]:
        counts[i] += 1
    for part, count in zip(parts, counts, strict=True):
        if not count:
            raise BadInput(
                f"calibration {options.source}: the share of {part.place} is less than one window of "
                f"{windows} in all; raise its weight or --calibration-tokens"
            )
    return counts


def _check_various(rows: np.ndarray, source: str, checkpoint: Checkpoint) -> None:
    """Errors: BadInput where nearly all tokens are one."""
    tokens, counts = np.unique(rows, return_counts=True)
    most = int(counts.argmax())
    if counts[most] > MOST_OF_ONE * rows.size:
        piece = SourceTokenizer.open(checkpoint.folder).piece(int(tokens[most]))
        raise BadInput(
            f"calibration {source}: {counts[most] / rows.size:.0%} of its tokens are one token, {piece!r}; "
            "give a text in the model's language"
        )


def _ids_sha256(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that a model takes, by its config or what that says of the text; 0 where neither tells."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"):
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0
