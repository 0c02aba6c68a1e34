"""What a SentencePiece ``.model`` says beyond its pieces: kind of model, normalizer. Read from the protobuf wire format directly.

The sentencepiece package does not tell, and its generated protobuf classes need a protobuf runtime of the right version.
Source: google/sentencepiece, src/sentencepiece_model.proto (field numbers).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import BadInput

UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
_TRAINER, _NORMALIZER = 2, 3  # fields of ModelProto
_MODEL_TYPE, _SUFFIX = 3, 24  # fields of TrainerSpec
_NAME, _CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE = 1, 2, 3, 4, 5  # fields of NormalizerSpec


@dataclass(frozen=True)
class Spec:
    """``charsmap``: SentencePiece's compiled normalization (empty: none). ``suffix``: the space goes behind a word."""

    model_type: int
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool
    suffix: bool


def read_spec(path: Path) -> Spec:
    """Errors: BadInput where the file is cut off or not protobuf."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value, _ in _fields(path.read_bytes()):
            if number == _TRAINER and isinstance(value, bytes):
                trainer = {n: v for n, v, _ in _fields(value)}
            elif number == _NORMALIZER and isinstance(value, bytes):
                normalizer = {n: v for n, v, _ in _fields(value)}
    except (IndexError, ValueError):
        raise BadInput(f"{path}: not a SentencePiece model (cut off or damaged); fetch it again") from None
    charsmap = normalizer.get(_CHARSMAP, b"")
    return Spec(
        model_type=int(trainer.get(_MODEL_TYPE, UNIGRAM)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_spaces=bool(normalizer.get(_EXTRA_SPACES, 1)),
        suffix=bool(trainer.get(_SUFFIX, 0)),
    )


def without_normalization(data: bytes) -> bytes:
    """The model with its character map and its collapsing of spaces taken out; the dummy prefix stays as it is."""
    out = bytearray()
    for number, value, raw in _fields(data):
        if number != _NORMALIZER or not isinstance(value, bytes):
            out += raw
            continue
        kept = b"".join(raw for n, _, raw in _fields(value) if n not in (_NAME, _CHARSMAP, _EXTRA_SPACES))
        kept += bytes([_NAME << 3 | 2, 8]) + b"identity" + bytes([_EXTRA_SPACES << 3, 0])
        out += bytes([_NORMALIZER << 3 | 2]) + _varint(len(kept)) + kept
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """(field number, value, its bytes with the tag) of a message, in order. Errors: ValueError, IndexError."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        elif kind == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(kind)
        if at > len(data):
            raise ValueError("cut off")
        yield tag >> 3, value, data[start:at]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("varint")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
