"""Chat templates, and the special tokens that they spell, read from a GGUF file's metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.chat.templates import ChatTemplate, choose
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.tokenizer.special import ROLES, T


def templates_of(kvs: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template of a file's metadata, ``default`` first."""
    prefix = T.CHAT_TEMPLATE + "."
    templates = {"default": kvs[T.CHAT_TEMPLATE]} if isinstance(kvs.get(T.CHAT_TEMPLATE), str) else {}
    return templates | {
        key.removeprefix(prefix): text
        for key, text in kvs.items()
        if key.startswith(prefix) and isinstance(text, str)
    }


def special_tokens(kvs: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` and so on -> their text, of a file's metadata."""
    ids = {role: token_of(kvs, role) for role in ROLES}
    return {f"{role}_token": str(kvs[T.LIST][number]) for role, number in ids.items() if number is not None}


def token_of(kvs: Mapping[str, Any], role: str) -> int | None:
    """The id of ``bos``, ``eos`` and so on; None where the file names none of its vocabulary."""
    return next(iter(_ids(kvs, ROLES[role])), None)


def end_tokens(kvs: Mapping[str, Any]) -> list[int]:
    """Ids that end generation in llama.cpp by the file's metadata: the ends of a text, of a turn, of a
    message."""
    return list(dict.fromkeys(_ids(kvs, T.EOS_ID, T.EOT_ID, T.EOM_ID)))


def _ids(kvs: Mapping[str, Any], *keys: str) -> list[int]:
    """What the file has under ``keys``, where it is the number of a token."""
    tokens, values = kvs.get(T.LIST), [kvs.get(key) for key in keys]
    size = len(tokens) if isinstance(tokens, list) else 0
    return [
        number
        for number in values
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size
    ]


def gguf_template(path: Path, name: str = "") -> ChatTemplate:
    """As ``folder_template``, from the file's metadata: what the template sees besides the messages are its
    special tokens."""
    kvs = read_gguf(path).kvs
    return ChatTemplate(choose(path, templates_of(kvs), name), special_tokens(kvs), str(path))
