"""What a SentencePiece ``.model`` contains beyond its pieces: kind of model, normalizer. Read from the
protobuf wire format directly.

The sentencepiece package does not tell, and its generated protobuf classes need a protobuf runtime of the
right version.
Source: google/sentencepiece, src/sentencepiece_model.proto (field numbers).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import BadInput

UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4  # TrainerSpec.ModelType
# SentencePiece.Type; GGUF's numbers are the same
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    1,
    2,
    3,
    4,
    5,
    6,
)
_PIECE = 1
_TRAINER, _NORMALIZER = 2, 3  # fields of ModelProto
_MODEL_TYPE, _SUFFIX = 3, 24  # fields of TrainerSpec
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4  # fields of NormalizerSpec


@dataclass(frozen=True)
class Spec:
    """``charsmap``: SentencePiece's compiled normalization (empty: none). ``suffix``: the space goes behind a
    word."""

    model_type: int
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool
    suffix: bool
    pieces: tuple[tuple[str, float, int], ...]  # text, score, type


def read_spec(path: Path) -> Spec:
    """Errors: BadInput where the file is cut off or not protobuf."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    pieces = []
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECE and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == _NORMALIZER and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (IndexError, ValueError, struct.error):
        raise BadInput(f"{path}: not a SentencePiece model (cut off or damaged); fetch it again") from None
    charsmap = normalizer.get(_CHARSMAP, b"")
    return Spec(
        model_type=int(trainer.get(_MODEL_TYPE, UNIGRAM)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_spaces=bool(normalizer.get(_EXTRA_SPACES, 1)),
        suffix=bool(trainer.get(_SUFFIX, 0)),
        pieces=tuple(pieces),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message, in order. Errors: ValueError, IndexError."""
    at = 0
    while at < len(data):
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
        yield tag >> 3, value


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
