"""A SentencePiece-style vocabulary of a GGUF as ``tokenizer.model``, and as the ``tokenizer.json`` that
produces the same ids.

Both are written: transformers 5 derives other merges from a lone ``tokenizer.model`` (seen on runs of
spaces). Source of the field numbers: google/sentencepiece, src/sentencepiece_model.proto.
"""

import struct
from typing import Any

from gguf import TokenType

from quantize.errors import BadInput
from quantize.gguf.to_checkpoint.vocabulary import Vocabulary
from quantize.terminal import printable

SPACE = "▁"
MAX_PIECE = 1024  # characters; sentencepiece's own default is 16, its trainer takes no more than 512


def sentencepiece_model_definition(vocabulary: Vocabulary) -> dict[str, Any]:
    """``model`` of a tokenizer.json: pieces are merged in the order of their scores, as SentencePiece does
    it.

    A piece gets a merge for every pair of pieces that it can be made of: which of them meet is decided by the
    text.
    Errors: BadInput where a piece is longer than any real one.
    """
    plain = {text: n for n, text in enumerate(vocabulary.tokens) if vocabulary.types[n] == TokenType.NORMAL}
    scores = vocabulary.scores()
    longest = max(plain, key=len, default="")
    if len(longest) > MAX_PIECE:
        raise BadInput(
            f"{vocabulary.file.path}: token {plain[longest]} has {len(longest):,} characters, "
            f"more than SentencePiece allows ({MAX_PIECE}); no tokenizer can be made"
        )
    lengths = {len(text) for text in plain}
    merges = [
        [text[:cut], text[cut:]]
        for text in sorted(plain, key=lambda text: (-scores[plain[text]], plain[text]))
        for cut in range(1, len(text))
        if cut in lengths and len(text) - cut in lengths and text[:cut] in plain and text[cut:] in plain
    ]
    unknown = unknown_id(vocabulary)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": TokenType.BYTE in vocabulary.types,
        "ignore_merges": False,
        "vocab": {
            text: number for number, text in enumerate(vocabulary.tokens) if not vocabulary.unused(number)
        },
        "merges": merges,
    }


def sentencepiece_steps(vocabulary: Vocabulary) -> dict[str, Any]:
    """``normalizer``, ``pre_tokenizer`` and ``decoder`` of a tokenizer.json."""
    prefix = vocabulary.find("add_space_prefix") is not False
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def unknown_id(vocabulary: Vocabulary) -> int:
    """Errors: BadInput where there is not exactly one unknown token."""
    # A converter that found <unk> among the added tokens made it a control token.
    unknown = (
        vocabulary.types.index(TokenType.UNKNOWN)
        if TokenType.UNKNOWN in vocabulary.types
        else vocabulary.id_of("unknown")
    )
    if unknown is None or vocabulary.types.count(TokenType.UNKNOWN) > 1:
        raise BadInput(
            f"{vocabulary.file.path}: expected exactly one unknown token; no SentencePiece model can be made"
        )
    return unknown


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """A SentencePiece BPE model: the pieces with their scores and types, no normalization, the dummy prefix
    as the file has it.

    Errors: BadInput where two tokens are alike, or there is not exactly one unknown token.
    """
    out = bytearray()
    seen: set[str] = set()
    unknown = unknown_id(vocabulary)
    for number, (text, score, kind) in enumerate(
        zip(vocabulary.tokens, vocabulary.scores(), vocabulary.types, strict=True)
    ):
        piece = text.replace(" ", SPACE) if kind == TokenType.USER_DEFINED else text
        if piece in seen or not piece:
            raise BadInput(
                f"{vocabulary.file.path}: token {number} ({printable(piece, 60)!r}) "
                "is empty or a duplicate; no SentencePiece model can be made"
            )
        seen.add(piece)
        stored = int(TokenType.UNKNOWN) if number == unknown else kind
        body = (
            _bytes(1, piece.encode("utf-8", errors="surrogateescape"))
            + b"\x15"
            + struct.pack("<f", score)
            + _number(3, stored)
        )
        out += _bytes(1, body)
    trainer = (
        _number(3, 2)
        + _number(4, len(vocabulary.tokens))
        + _number(35, int(TokenType.BYTE in vocabulary.types))
    )
    trainer += _number(40, unknown) + _bytes(45, vocabulary.tokens[unknown].encode())
    for field, role in ((41, "bos"), (42, "eos"), (43, "padding")):
        special = vocabulary.id_of(role)
        if special is None or vocabulary.types[special] != TokenType.CONTROL:
            trainer += _number(field, (1 << 64) - 1) + _bytes(field + 5, b"")  # -1: there is none
        else:
            trainer += _number(field, special) + _bytes(field + 5, vocabulary.tokens[special].encode())
    prefix = vocabulary.find("add_space_prefix") is not False
    normalizer = _bytes(1, b"identity") + _number(3, int(prefix)) + _number(4, 0) + _number(5, 1)
    return bytes(out) + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
