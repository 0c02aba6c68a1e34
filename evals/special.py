"""Which tokens begin and end a text: of a GGUF file by its metadata, of a folder by its files."""

from pathlib import Path

from quantize.chat.special_ids import SpecialIds, of_source
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.tokenizer.chat_templates import end_tokens, token_of

__all__ = ["SpecialIds", "of_gguf", "of_source"]


def of_gguf(path: Path) -> SpecialIds:
    """As the file's own metadata have it."""
    kvs = read_gguf(path).kvs
    return SpecialIds(token_of(kvs, "bos"), token_of(kvs, "eos"), frozenset(end_tokens(kvs)))
