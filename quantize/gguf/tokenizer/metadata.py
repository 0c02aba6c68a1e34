"""A checkpoint's tokenizer as GGUF metadata: the ``tokenizer.*`` keys that make llama.cpp produce the
source's ids."""

from dataclasses import dataclass, field
from functools import lru_cache

from gguf import GGUFValueType, Keys

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.templates import folder_templates
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.gguf.tokenizer.embedding import embedding_rows
from quantize.gguf.tokenizer.special import Kvs, special_kvs, template_kvs
from quantize.gguf.tokenizer.verify import Mismatch, TokenizerReport, verify_tokenizer
from quantize.gguf.tokenizer.vocabulary import Vocabulary, read_vocabulary

__all__ = [
    "Mismatch",
    "TokenizerMetadata",
    "TokenizerReport",
    "check_tokenizer",
    "tokenizer_metadata",
    "verify_tokenizer",
]


@dataclass
class TokenizerMetadata:
    """``kvs`` in the order they are written: key -> (value, type); arrays are lists (``bytes`` for an array
    of uint8)."""

    kvs: Kvs
    notes: list[Note] = field(default_factory=list)


def tokenizer_metadata(checkpoint: Checkpoint, *, pre: str | None = None) -> TokenizerMetadata:
    """All ``tokenizer.*`` metadata of ``checkpoint``, the vocabulary filled up to its embedding's rows.

    ``pre``: llama.cpp's name of the pre-tokenizer, for a split that is not recognised.
    Errors: Unsupported where llama.cpp has no such tokenizer; BadInput for damaged files or an unknown
    ``pre``.
    """
    return _made(
        _Asked(_state(checkpoint), pre, embedding_rows(checkpoint), repr(checkpoint.config), checkpoint)
    )


@dataclass(frozen=True)
class _Asked:
    """What the metadata depends on: the files as they are now, the embedding's rows, the config."""

    files: tuple[tuple[str, int, int], ...]
    pre: str | None
    rows: int | None
    config: str
    checkpoint: Checkpoint = field(compare=False)


@lru_cache(maxsize=1)  # asked again for every GGUF recipe of a model; a large vocabulary takes seconds
def _made(asked: _Asked) -> TokenizerMetadata:
    checkpoint = asked.checkpoint
    source = SourceTokenizer.open(checkpoint.folder)
    vocabulary = read_vocabulary(source, asked.rows, pre=asked.pre, model_type=checkpoint.model_type)
    kvs = _vocabulary_kvs(vocabulary)
    special, notes = special_kvs(checkpoint, source, vocabulary)
    kvs |= special
    kvs |= template_kvs(folder_templates(checkpoint.folder))
    return TokenizerMetadata(kvs, [*vocabulary.notes, *notes])


def _state(checkpoint: Checkpoint) -> tuple[tuple[str, int, int], ...]:
    """The files that a tokenizer is made of: path, size, time of the last change."""
    files = [*sorted(p for p in checkpoint.folder.glob("*.*") if p.suffix in (".json", ".model", ".txt",
    ".jinja")),
             *sorted(checkpoint.folder.glob("additional_chat_templates/*"))]  # fmt: skip
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def check_tokenizer(checkpoint: Checkpoint, *, pre: str | None = None) -> None:
    """Look at the tokenizer's files before work starts. Errors: as of ``tokenizer_metadata``."""
    tokenizer_metadata(checkpoint, pre=pre)


def _vocabulary_kvs(vocabulary: Vocabulary) -> Kvs:
    t, string, array = Keys.Tokenizer, GGUFValueType.STRING, GGUFValueType.ARRAY
    kvs: Kvs = {
        t.MODEL: (vocabulary.model, string),
        t.PRE: (vocabulary.pre, string),
        t.LIST: (vocabulary.tokens, array),
    }
    if vocabulary.scores is not None:
        kvs[t.SCORES] = (vocabulary.scores, array)
    kvs[t.TOKEN_TYPE] = (vocabulary.types, array)
    if vocabulary.merges is not None:
        kvs[t.MERGES] = (vocabulary.merges, array)
    for flag, value in vocabulary.flags.items():
        kvs[f"tokenizer.ggml.{flag}"] = (value, array if isinstance(value, bytes) else GGUFValueType.BOOL)
    return kvs
