"""A model's tokenizer and chat templates as its files say, without a tokenizer library."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.templates import folder_templates
from quantize.checkpoint.tokenizer_files import read_definition, read_if_there
from quantize.files import inside, read_json
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.sentencepiece_model import BPE, UNIGRAM, read_spec
from quantize.gguf.tokenizer.special import T
from quantize.terminal import printable

WORD = 80
#: tokens that turns of a conversation begin with
TURNS = (
    "<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "[INST]", "<|user|>", "<|User|>", "<|turn>",
    "<\uff5cUser\uff5c>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|start|>",
)  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """``kind``: BPE, Unigram, ... as its file says; "" where there is none. ``ids``: one more than the
    largest id, None where that is not known. ``turns``: whether it has tokens for turns of a conversation."""

    kind: str = ""
    file: str = ""
    called: str = ""
    ids: int | None = None
    turns: bool = False


@dataclass(frozen=True)
class Template:
    name: str
    characters: int
    sha256: str


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Errors: BadInput where a file is not what its name says."""
    config = read_if_there(inside(folder, "tokenizer_config.json"))
    called = printable(config.get("tokenizer_class") or "", WORD)
    declared = config.get("added_tokens_decoder")
    added = declared if isinstance(declared, dict) else {}
    more = [each.get("content") for each in added.values() if isinstance(each, dict)]
    largest = max((int(key) for key in added if key.isdecimal() and len(key) < 10), default=-1)
    path = inside(folder, "tokenizer.json")
    if path.is_file():
        data = read_definition(path)
        vocabulary, entries = data["model"]["vocab"], data.get("added_tokens") or []
        if isinstance(vocabulary, dict):
            last = max(vocabulary.values(), default=-1)
        else:
            last = len(vocabulary) - 1
        last = max([last, *(entry["id"] for entry in entries)])
        texts = [entry.get("content") for entry in entries]
        kind = printable(data["model"].get("type") or "BPE", WORD)
        return Tokenizer(kind, path.name, called, last + 1, _turns([*texts, *more]))
    for name in ("tokenizer.model", "spiece.model"):
        path = inside(folder, name)
        if path.is_file():
            spec = read_spec(path)
            kind = {UNIGRAM: "Unigram", BPE: "BPE"}.get(spec.model_type, "words")
            last = max(len(spec.pieces) - 1, largest)
            return Tokenizer(f"SentencePiece {kind}", name, called, last + 1, _turns(more))
    path = inside(folder, "vocab.json")
    if path.is_file():
        ids = [value for value in read_json(path).values() if type(value) is int]
        return Tokenizer("BPE", path.name, called, max([*ids, largest], default=-1) + 1, _turns(more))
    return Tokenizer(called=called)


def gguf_tokenizer(kvs: Mapping[str, Any]) -> Tokenizer:
    tokens = kvs.get(T.LIST)
    ids = len(tokens) if isinstance(tokens, list) else None
    kind, pre = printable(kvs.get(T.MODEL) or "", WORD), printable(kvs.get(T.PRE) or "", WORD)
    turns = _turns(tokens) if isinstance(tokens, list) else False
    return Tokenizer(kind, "metadata" if kind else "", pre, ids, turns)


def folder_chat(folder: Path) -> list[Template]:
    """Errors: BadInput."""
    return [_template(*item) for item in folder_templates(folder).items()]


def gguf_chat(kvs: Mapping[str, Any]) -> list[Template]:
    return [_template(*item) for item in templates_of(kvs).items()]


def _template(name: str, text: str) -> Template:
    raw = text.encode("utf-8", "surrogatepass")
    return Template(printable(name, WORD), len(text), hashlib.sha256(raw).hexdigest())


def _turns(texts: Iterable[Any]) -> bool:
    known = set(TURNS)
    return any(isinstance(text, str) and text in known for text in texts)
