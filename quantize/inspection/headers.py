"""Where the configs, metadata, tokenizers and chat templates of two models differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.checkpoint.templates import folder_templates
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import QuantwrightError
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.tokenizer.awkward_texts import awkward_texts
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.inspection.sides import Side
from quantize.terminal import printable

VALUE, MOST = 80, 200
#: what a quantized model's config says otherwise, rightly
OWN = {
    "quantization_config", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures",
    "rope_parameters", "rope_scaling", "rope_theta", "use_cache", "auto_map", "_attn_implementation_autoset",
}  # fmt: skip
#: of a GGUF: who made it and how
OWN_METADATA = ("general.file_type", "general.quantization_version", "general.name", "quantize.imatrix.",
                "general.quantized_by", "split.", "general.basename", "general.size_label")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A field of config or metadata that differs; a value is None where there is none."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class TokenizerDifference:
    """``ids``: one more than the largest id of each. ``texts``: how many texts were split by both, and
    ``differ``: of how many the ids differ; ``example``: one of these. ``templates_equal``: of all chat
    templates. ``why_not``: why they could not be compared."""

    ids: tuple[int | None, int | None] = (None, None)
    texts: int = 0
    differ: int = 0
    example: str = ""
    templates_equal: bool | None = None
    why_not: str = ""


def settings(a: Side, b: Side) -> list[Setting]:
    """Bounded: at most ``MOST``. Of a GGUF beside a folder, only what both say."""
    if a.gguf is not None and b.gguf is not None:
        return _differences(_metadata(a.gguf), _metadata(b.gguf), either=True)
    return _differences(_flat(a.config), _flat(b.config), either=not (a.converted or b.converted))


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], either: bool) -> list[Setting]:
    names = first.keys() | second.keys() if either else first.keys() & second.keys()
    return [
        Setting(printable(name, VALUE), _said(first.get(name)), _said(second.get(name)))
        for name in sorted(names)
        if first.get(name) != second.get(name)
    ][:MOST]


def _said(value: Any) -> str | None:
    return None if value is None else printable(value, VALUE)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the language model, without what differs rightly, rope in one spelling."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) and inner else config
    found = {name: value for name, value in text.items() if name not in OWN and value is not None}
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        theta = rope.get("rope_theta") or text.get("rope_theta")
        found |= {"rope type": kind, "rope theta": None if theta is None else float(theta)}
        found |= {f"rope {k}": v for k, v in rope.items() if k not in ("rope_type", "type", "rope_theta")}
    return found


def _metadata(file: GgufFile) -> dict[str, Any]:
    return {
        name: value
        for name, value in file.kvs.items()
        if not name.startswith((*OWN_METADATA, "tokenizer.chat_template")) and not isinstance(value, list)
    }


def tokenizers(a: Side, b: Side) -> TokenizerDifference:
    """Both split the texts on which tokenizers are known to differ."""
    if a.gguf is not None and b.gguf is not None:
        return _lists(a.gguf, b.gguf)
    assert a.folder is not None
    assert b.folder is not None
    try:
        first, second = SourceTokenizer.open(a.folder), SourceTokenizer.open(b.folder)
        same = folder_templates(a.folder) == folder_templates(b.folder)
        texts = awkward_texts(second)
        wrong = [text for text in texts if first.encode(text) != second.encode(text)]
    except QuantwrightError as error:
        return TokenizerDifference(why_not=printable(error, 300))
    example = ""
    if wrong:
        shortest = min(wrong, key=len)
        ids = [side.encode(shortest)[:8] for side in (first, second)]
        example = printable(f"{shortest!r}: {ids[0]} and {ids[1]}", 300)
    ids_of = (first.vocab_size, second.vocab_size)
    return TokenizerDifference(ids_of, len(texts), len(wrong), example, same)


def _lists(a: GgufFile, b: GgufFile) -> TokenizerDifference:
    """Of two GGUF files: what they hold, entry by entry."""
    counts, compared, differ, example = [], 0, 0, ""
    for file in (a, b):
        tokens = file.kvs.get("tokenizer.ggml.tokens")
        counts.append(len(tokens) if isinstance(tokens, list) else None)
    for part in ("tokens", "merges", "scores", "token_type"):
        mine, theirs = (file.kvs.get(f"tokenizer.ggml.{part}") or [] for file in (a, b))
        compared += max(len(mine), len(theirs))
        apart = [i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x != y]
        differ += len(apart) + abs(len(mine) - len(theirs))
        if apart and not example:
            at = apart[0]
            example = printable(f"{part} {at}: {mine[at]!r} and {theirs[at]!r}", 300)
    same = templates_of(a.kvs) == templates_of(b.kvs)
    return TokenizerDifference((counts[0], counts[1]), compared, differ, example, same)
