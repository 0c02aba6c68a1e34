"""What looks wrong with a model, from its headers alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gguf import LlamaFileType

from quantize.dtypes import FLOATS
from quantize.gguf.container.reader import GgufFile
from quantize.inspection.tensors import Weight
from quantize.inspection.tokenizers import Template, Tokenizer
from quantize.terminal import printable

#: what transformers computes rotary frequencies by; ``su`` is an old name of longrope
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "proportional", "mrope")
WITH_FACTOR = ("linear", "dynamic", "yarn", "llama3")
NOT_QUANTIZED = (LlamaFileType.ALL_F32, LlamaFileType.MOSTLY_F16, LlamaFileType.MOSTLY_BF16)
GGUF_ROPE_TYPES = ("none", "linear", "yarn", "longrope")
DEFAULT_THETA = 10000.0
_CHAT_NAME = re.compile(r"instruct|chat|(?<![a-z])it(?![a-z])", re.IGNORECASE)
EMBEDDING = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight",
              "token_embd.weight", "embeddings.weight", "tok_embeddings.weight")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """``level``: ``wrong``, or ``note`` for what may be meant. ``what`` is a fixed word for programs."""

    level: Literal["wrong", "note"]
    what: str
    why: str


def embedding_rows(weights: Sequence[Weight], config: Mapping[str, Any]) -> int | None:
    rows = next((w.shape[0] for w in weights if w.name.endswith(EMBEDDING) and len(w.shape) == 2), None)
    said = _text(config).get("vocab_size")
    return rows or (said if type(said) is int else None)


def vocabulary(tokenizer: Tokenizer, rows: int | None) -> Iterator[Problem]:
    if tokenizer.ids is None or rows is None or tokenizer.ids == rows:
        return
    if tokenizer.ids > rows:
        yield Problem(
            "wrong",
            "tokenizer larger than the vocabulary",
            f"its ids go to {tokenizer.ids - 1:,}, the embedding has {rows:,} rows: a text with such a token "
            "fails",
        )
        return
    # widths that training pads a vocabulary to
    padded = any(rows == -(-tokenizer.ids // width) * width for width in (64, 128, 256, 512, 1024))
    yield Problem(
        "note",
        "vocabulary larger than the tokenizer",
        f"the embedding has {rows:,} rows, the tokenizer {tokenizer.ids:,} ids"
        + ("; rows at its end are padding" if padded else ": the tokenizer may be another model's"),
    )


def chat(name: str, tokenizer: Tokenizer, templates: Sequence[Template]) -> Iterator[Problem]:
    if templates or not tokenizer.kind:
        return
    hints = ["its tokenizer has tokens for turns"] if tokenizer.turns else []
    if _CHAT_NAME.search(name):
        hints.append("its name says that it was trained to chat")
    if hints:
        yield Problem(
            "wrong" if len(hints) == 2 else "note",
            "no chat template",
            f"{' and '.join(hints)}, and no template says how a conversation is written",
        )


def folder_problems(config: Mapping[str, Any], weights: Sequence[Weight], storage: str) -> Iterator[Problem]:
    yield from _tied(config, weights)
    yield from _quantized(config, weights, storage)
    yield from _rope(config)
    if config.get("auto_map"):
        yield Problem(
            "note",
            "code of its own",
            "config.json names Python code to open it with; transformers runs that only with "
            "trust_remote_code",
        )


def _tied(config: Mapping[str, Any], weights: Sequence[Weight]) -> Iterator[Problem]:
    tied = config.get("tie_word_embeddings", _text(config).get("tie_word_embeddings"))
    heads = [w for w in weights if w.part == "head" and w.name.endswith("weight")]
    embeddings = [w for w in weights if w.name.endswith(EMBEDDING)]
    for head in heads if tied is True else ():
        if any(e.shape == head.shape and e.type == head.type for e in embeddings):
            yield Problem(
                "wrong",
                "tied head stored twice",
                f"tie_word_embeddings is true, and {printable(head.name, 100)} is stored beside the "
                f"embedding: {head.size_bytes:,} bytes that loaders throw away",
            )


def _quantized(config: Mapping[str, Any], weights: Sequence[Weight], storage: str) -> Iterator[Problem]:
    matrices = [w for w in weights if w.part in ("attention", "mlp", "experts") and len(w.shape) >= 2]
    plain = [w for w in matrices if w.type in FLOATS]
    if storage != "dense" and matrices and len(plain) == len(matrices):
        yield Problem(
            "wrong",
            "not quantized",
            f"it says {printable(storage, 40)}, and every matrix is stored as {plain[0].type}",
        )
    if storage == "dense" and len(plain) < len(matrices):
        odd = next(w for w in matrices if w.type not in FLOATS)
        yield Problem(
            "wrong",
            "quantized without saying so",
            f"config.json names no quantization, and {printable(odd.name, 100)} is stored as {odd.type}",
        )


def _rope(config: Mapping[str, Any]) -> Iterator[Problem]:
    text = _text(config)
    old, new = text.get("rope_scaling"), text.get("rope_parameters")
    for key, said in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(said, dict):
            continue
        each = [value for value in said.values() if isinstance(value, dict)] or [said]
        for part in each:
            yield from _scaling(key, part)
    if isinstance(new, dict) and not old:
        parts = [value for value in new.values() if isinstance(value, dict)] or [new]
        kinds = {str(part.get("rope_type", "default")) for part in parts} - {"default"}
        thetas = {str(part.get("rope_theta") or DEFAULT_THETA) for part in parts} - {str(DEFAULT_THETA)}
        if kinds or (thetas and "rope_theta" not in text):
            what = f"scaling {printable(min(kinds), 40)}" if kinds else f"base {printable(min(thetas), 40)}"
            yield Problem(
                "note",
                "rope in rope_parameters only",
                f"programs that read rope_theta and rope_scaling (transformers 4, and others that parse "
                f"config.json themselves) miss its {what}",
            )


def _scaling(key: str, part: Mapping[str, Any]) -> Iterator[Problem]:
    new, old = part.get("rope_type"), part.get("type")
    kind = str(new or old or "default")
    if new and old and new != old and {str(new), str(old)} != {"su", "longrope"}:
        yield Problem(
            "wrong",
            "rope scaling contradicts itself",
            f"{key} has rope_type {printable(new, 40)} and type {printable(old, 40)}",
        )
    if kind not in ROPE_TYPES:
        yield Problem(
            "wrong",
            "rope scaling that the runtime does not read",
            f"{key} is of type {printable(kind, 40)}; transformers knows {', '.join(ROPE_TYPES)}",
        )
    if kind in WITH_FACTOR and not part.get("factor"):
        yield Problem("wrong", "rope scaling without a factor", f"{key} of type {kind} needs one")


def gguf_problems(file: GgufFile) -> Iterator[Problem]:
    architecture = str(file.kvs.get("general.architecture", ""))
    yield from _unquantized(file)

    def said(name: str) -> Any:
        return file.kvs.get(f"{architecture}.rope.scaling.{name}")

    kind = said("type")
    if kind is not None and kind not in GGUF_ROPE_TYPES:
        yield Problem(
            "wrong",
            "rope scaling that the runtime does not read",
            f"rope.scaling.type is {printable(kind, 40)}; llama.cpp knows {', '.join(GGUF_ROPE_TYPES)}",
        )
    if kind in ("linear", "yarn") and not said("factor"):
        yield Problem("wrong", "rope scaling without a factor", f"rope.scaling.type is {kind}")
    if kind == "longrope" and not any(name.startswith("rope_factors_") for name in file.tensors):
        yield Problem("wrong", "rope scaling without a factor", "longrope, and no rope_factors tensors")


def _unquantized(file: GgufFile) -> Iterator[Problem]:
    """A file whose type says that its matrices are quantized, and none is."""
    said: Any = file.kvs.get("general.file_type")
    try:
        kind = LlamaFileType(said)
    except ValueError:
        return
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if kind not in NOT_QUANTIZED and kinds and kinds <= {"F32", "F16", "BF16", "F64"}:
        yield Problem(
            "wrong",
            "not quantized",
            f"general.file_type says {kind.name}, and every matrix is stored as {' or '.join(sorted(kinds))}",
        )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and inner else config
