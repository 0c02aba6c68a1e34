"""A GGUF's vocabulary as the tokenizer files of a checkpoint.

SentencePiece-style vocabularies become a ``tokenizer.model`` with the file's own scores; byte-level BPE a ``tokenizer.json``
whose split is that of the pre-tokenizer named in the file. No normalizer is put back: the file does not say which there was.
Source of the field numbers: google/sentencepiece, src/sentencepiece_model.proto.
"""

import json
import struct
from pathlib import Path
from typing import Any

from gguf import TokenType

from quantize.errors import BadInput, Unsupported
from quantize.gguf.pretokenizers import BY_NAME, SPLITS
from quantize.gguf.reader import GgufFile
from quantize.gguf.tokenizer_vocabulary import SPECIAL_SCORE

SPACE = "▁"
# llama.cpp adds the bos token unasked with these pre-tokenizers and with SentencePiece-style vocabularies
BOS_UNASKED = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "tekken", "midm-2.0", "lfm2")
# Patterns that llama.cpp has in a dialect of its own, as the models' own files write them.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ORIGINAL = {
    "gpt-4o": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


class Vocabulary:
    """``tokenizer.ggml.*`` of one file, checked. Errors: BadInput."""

    def __init__(self, file: GgufFile):
        self.file = file
        self.model = str(self.find("model") or "")
        self.tokens: list[str] = self._list("tokens", str)
        count = len(self.tokens)
        self.types: list[int] = self._list("token_type", int, count) or [int(TokenType.NORMAL)] * count

    def find(self, key: str) -> Any:
        return self.file.kvs.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        value = self.find(key)
        if value is None and count is not None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value) or (count not in (None, len(value))):
            raise BadInput(f"{self.file.path}: tokenizer.ggml.{key}: expected a list of {count or 'some'} {kind.__name__}")
        return value

    def scores(self) -> list[float]:
        return self._list("scores", float, len(self.tokens)) or [0.0] * len(self.tokens)

    def merges(self) -> list[str]:
        return self._list("merges", str)

    def id_of(self, role: str) -> int | None:
        number = self.find(f"{role}_token_id")
        return number if isinstance(number, int) and 0 <= number < len(self.tokens) else None

    def added(self) -> dict[int, TokenType]:
        """Ids of control and user-defined tokens."""
        wanted = (TokenType.CONTROL, TokenType.USER_DEFINED)
        found = {number: TokenType(kind) for number, kind in enumerate(self.types) if kind in wanted}
        if self.model != "llama":
            return found
        # One with a score of its own was in the SentencePiece model itself, and is there again.
        scores = self.scores()
        return {number: kind for number, kind in found.items() if scores[number] == SPECIAL_SCORE}

    def unused(self, number: int) -> bool:
        return self.types[number] == TokenType.UNUSED and self.tokens[number] == f"[PAD{number}]"


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Errors: Unsupported for a kind of vocabulary, or a pre-tokenizer, that there is no way back from; BadInput."""
    vocabulary = Vocabulary(file)
    if vocabulary.model == "llama":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocabulary))
        adds_bos = vocabulary.find("add_bos_token") is not False
    elif vocabulary.model == "gpt2":
        adds_bos = vocabulary.find("add_bos_token")
        adds_bos = vocabulary.find("pre") in BOS_UNASKED if adds_bos is None else bool(adds_bos)
        definition = tokenizer_json(vocabulary, adds_bos, bool(vocabulary.find("add_eos_token")))
        (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    else:
        raise Unsupported(f"{file.path}: a tokenizer of kind {vocabulary.model!r} cannot be read back; llama and gpt2 can")
    config = _config(vocabulary, adds_bos)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _write_templates(file, folder)


def _config(vocabulary: Vocabulary, adds_bos: bool) -> dict[str, Any]:
    gemma = str(vocabulary.file.kvs.get("general.architecture", "")).startswith("gemma")
    sentencepiece = "GemmaTokenizer" if gemma else "LlamaTokenizer"
    config: dict[str, Any] = {
        "tokenizer_class": sentencepiece if vocabulary.model == "llama" else "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "add_eos_token": bool(vocabulary.find("add_eos_token")),
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary.model == "llama":
        config["add_prefix_space"] = vocabulary.find("add_space_prefix") is not False
        config["legacy"] = True
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        if (number := vocabulary.id_of(role)) is not None:
            config[f"{name}_token"] = vocabulary.tokens[number]
    config["added_tokens_decoder"] = {
        str(number): _added_token(vocabulary.tokens[number], kind is TokenType.CONTROL)
        for number, kind in vocabulary.added().items()
    }
    if isinstance(context := vocabulary.file.kvs.get(f"{vocabulary.file.kvs.get('general.architecture')}.context_length"), int):
        config["model_max_length"] = context
    return config


def _added_token(text: str, special: bool) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}


def _write_templates(file: GgufFile, folder: Path) -> None:
    prefix = "tokenizer.chat_template"
    if isinstance(template := file.kvs.get(prefix), str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for key, template in file.kvs.items():
        name = key.removeprefix(prefix + ".")
        if key.startswith(prefix + ".") and isinstance(template, str) and name.replace("_", "").isalnum():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template, encoding="utf-8")


def tokenizer_json(vocabulary: Vocabulary, adds_bos: bool, adds_eos: bool) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE. Errors: Unsupported for a pre-tokenizer unknown here; BadInput for a bad merge."""
    name = str(vocabulary.find("pre") or "default")
    pre = BY_NAME.get(name)
    if pre is None or not pre.byte_level:
        raise Unsupported(f"{vocabulary.file.path}: pre-tokenizer {name!r} is not one that can be read back")
    patterns = ORIGINAL.get(pre.split, SPLITS[pre.split])
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    merges = []
    for merge in vocabulary.merges():
        left, space, right = merge.partition(" ")
        if not space or not left or not right or " " in right:
            raise BadInput(f"{vocabulary.file.path}: tokenizer.ggml.merges: {merge!r} is not a pair of tokens")
        merges.append([left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, **_added_token(vocabulary.tokens[number], kind is TokenType.CONTROL)}
            for number, kind in vocabulary.added().items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": _post_processor(vocabulary, adds_bos, adds_eos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": {text: number for number, text in enumerate(vocabulary.tokens) if not vocabulary.unused(number)},
            "merges": merges,
        },
    }


def _post_processor(vocabulary: Vocabulary, adds_bos: bool, adds_eos: bool) -> dict[str, Any] | None:
    around = {role: vocabulary.id_of(role) if wanted else None for role, wanted in (("bos", adds_bos), ("eos", adds_eos))}
    if around["bos"] is None and around["eos"] is None:
        return None

    def special(role: str, kind: int) -> list[dict[str, Any]]:
        number = around[role]
        return [] if number is None else [{"SpecialToken": {"id": vocabulary.tokens[number], "type_id": kind}}]

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        return [*special("bos", kind), {"Sequence": {"id": name, "type_id": kind}}, *special("eos", kind)]

    tokens = {
        vocabulary.tokens[n]: {"id": vocabulary.tokens[n], "ids": [n], "tokens": [vocabulary.tokens[n]]}
        for n in around.values()
        if n is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": tokens,
    }


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """A SentencePiece BPE model: the pieces with their scores and types, no normalization, the dummy prefix as the file has it.

    Errors: BadInput where two tokens are alike, or there is not exactly one unknown token.
    """
    out = bytearray()
    seen: set[str] = set()
    # A converter that found <unk> among the added tokens made it a control token; a SentencePiece model has exactly one unknown.
    unknown = vocabulary.types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in vocabulary.types else vocabulary.id_of("unknown")
    if unknown is None or vocabulary.types.count(TokenType.UNKNOWN) > 1:
        raise BadInput(f"{vocabulary.file.path}: expected exactly one unknown token; no SentencePiece model can be made")
    for number, (text, score, kind) in enumerate(zip(vocabulary.tokens, vocabulary.scores(), vocabulary.types, strict=True)):
        piece = text.replace(" ", SPACE) if kind == TokenType.USER_DEFINED else text
        if piece in seen or not piece:
            raise BadInput(
                f"{vocabulary.file.path}: token {number} ({piece!r}) is empty or there twice; no SentencePiece model can be made"
            )
        seen.add(piece)
        stored = int(TokenType.UNKNOWN) if number == unknown else kind
        body = (
            _bytes(1, piece.encode("utf-8", errors="surrogateescape")) + b"\x15" + struct.pack("<f", score) + _number(3, stored)
        )
        out += _bytes(1, body)
    trainer = _number(3, 2) + _number(4, len(vocabulary.tokens)) + _number(35, int(TokenType.BYTE in vocabulary.types))
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
