"""A GGUF's vocabulary as the tokenizer files of a checkpoint.

SentencePiece-style vocabularies become a ``tokenizer.model`` with the file's own scores, and a
``tokenizer.json``; byte-level BPE a ``tokenizer.json`` whose split is that of the pre-tokenizer named in the
file. No normalizer is restored: the file does not say which there was.
"""

import json
from pathlib import Path
from typing import Any

from gguf import TokenType

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.to_checkpoint.sentencepiece import (
    sentencepiece_model,
    sentencepiece_model_definition,
    sentencepiece_steps,
)
from quantize.gguf.to_checkpoint.vocabulary import Vocabulary
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.pretokenizers import BY_NAME, SPLITS, Pre
from quantize.terminal import printable

# llama.cpp adds the bos token unasked with these pre-tokenizers and with SentencePiece-style vocabularies
BOS_UNASKED = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "tekken",
    "midm-2.0",
    "lfm2",
)
# Patterns that llama.cpp writes in its own dialect, as the models' own files write them.
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


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Errors: Unsupported for a kind of vocabulary or a pre-tokenizer that cannot be read back; BadInput."""
    vocabulary = Vocabulary(file)
    if vocabulary.model == "llama":
        model = sentencepiece_model(vocabulary)
        adds_bos = vocabulary.find("add_bos_token") is not False
        steps, merged = sentencepiece_steps(vocabulary), sentencepiece_model_definition(vocabulary)
        (folder / "tokenizer.model").write_bytes(model)
    elif vocabulary.model == "gpt2":
        adds_bos = vocabulary.find("add_bos_token")
        adds_bos = vocabulary.find("pre") in BOS_UNASKED if adds_bos is None else bool(adds_bos)
        steps, merged = byte_level_steps(vocabulary), byte_level_model(vocabulary)
    else:
        raise Unsupported(
            f"{file.path}: a tokenizer of kind {printable(vocabulary.model, 60)!r} "
            "cannot be read back; llama and gpt2 can"
        )
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, **_added_token(vocabulary.tokens[number], special)}
            for number, special in _matched(vocabulary)
        ],
        **steps,
        "post_processor": _post_processor(vocabulary, adds_bos, bool(vocabulary.find("add_eos_token"))),
        "model": merged,
    }
    (folder / "tokenizer.json").write_text(
        json.dumps(definition, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    config = _config(vocabulary, adds_bos)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    _write_templates(file, folder)


def _config(vocabulary: Vocabulary, adds_bos: bool) -> dict[str, Any]:
    # The class that uses tokenizer.json unchanged; those named after models change it.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "add_eos_token": bool(vocabulary.find("add_eos_token")),
        "clean_up_tokenization_spaces": False,
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        if (number := vocabulary.id_of(role)) is not None:
            config[f"{name}_token"] = vocabulary.tokens[number]
    config["added_tokens_decoder"] = {
        str(number): _added_token(vocabulary.tokens[number], kind is TokenType.CONTROL)
        for number, kind in vocabulary.added().items()
    }
    if isinstance(
        context := vocabulary.file.kvs.get(
            f"{vocabulary.file.kvs.get('general.architecture')}.context_length"
        ),
        int,
    ):
        config["model_max_length"] = context
    return config


def _added_token(text: str, special: bool) -> dict[str, Any]:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": special,
    }


def _write_templates(file: GgufFile, folder: Path) -> None:
    for name, template in templates_of(file.kvs).items():
        try:
            template.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{file.path}: a chat template is not UTF-8; fetch the file again") from None
        if name == "default":
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        elif len(name) < 100 and name.replace("_", "").isalnum():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template, encoding="utf-8")


def _matched(vocabulary: Vocabulary) -> list[tuple[int, bool]]:
    """Tokens found in the text before anything else is done to it: (id, whether it is special)."""
    kinds = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    return [(number, kinds[TokenType(kind)]) for number, kind in enumerate(vocabulary.types) if kind in kinds]


def byte_level_steps(vocabulary: Vocabulary) -> dict[str, Any]:
    """``normalizer``, ``pre_tokenizer`` and ``decoder``. Errors: Unsupported for a pre-tokenizer unknown
    here."""
    pre = _pre(vocabulary)
    patterns = ORIGINAL.get(pre.split, SPLITS[pre.split])
    splits = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }


def byte_level_model(vocabulary: Vocabulary) -> dict[str, Any]:
    """``model``. Errors: BadInput for a malformed merge."""
    merges = []
    for merge in vocabulary.merges():
        left, space, right = merge.partition(" ")
        if not space or not left or not right or " " in right:
            raise BadInput(
                f"{vocabulary.file.path}: tokenizer.ggml.merges: "
                f"{printable(merge, 60)!r} is not a pair of tokens"
            )
        merges.append([left, right])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": _pre(vocabulary).ignore_merges,
        "vocab": {
            text: number for number, text in enumerate(vocabulary.tokens) if not vocabulary.unused(number)
        },
        "merges": merges,
    }


def _pre(vocabulary: Vocabulary) -> Pre:
    name = str(vocabulary.find("pre") or "default")
    pre = BY_NAME.get(name)
    if pre is None or not pre.byte_level:
        raise Unsupported(
            f"{vocabulary.file.path}: pre-tokenizer {printable(name, 60)!r} cannot be read back"
        )
    return pre


def _post_processor(vocabulary: Vocabulary, adds_bos: bool, adds_eos: bool) -> dict[str, Any] | None:
    around = {
        role: vocabulary.id_of(role) if wanted else None
        for role, wanted in (("bos", adds_bos), ("eos", adds_eos))
    }
    if around["bos"] is None and around["eos"] is None:
        return None

    def special(role: str, kind: int) -> list[dict[str, Any]]:
        number = around[role]
        return (
            [] if number is None else [{"SpecialToken": {"id": vocabulary.tokens[number], "type_id": kind}}]
        )

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
