"""Chat templates, and the special tokens that they spell, read from a GGUF file's metadata."""

from collections.abc import Mapping
from typing import Any

from quantize.gguf.tokenizer_special import ROLES, T


def templates_of(kvs: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template of a file's metadata, ``default`` first."""
    prefix = T.CHAT_TEMPLATE + "."
    templates = {"default": kvs[T.CHAT_TEMPLATE]} if isinstance(kvs.get(T.CHAT_TEMPLATE), str) else {}
    return templates | {
        key.removeprefix(prefix): text for key, text in kvs.items() if key.startswith(prefix) and isinstance(text, str)
    }


def special_tokens(kvs: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` and so on -> their text, of a file's metadata."""
    tokens = kvs.get(T.LIST) or []
    ids = {role: kvs.get(key) for role, key in ROLES.items()}
    return {f"{role}_token": str(tokens[i]) for role, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}


def token_of(kvs: Mapping[str, Any], role: str) -> int | None:
    """The id of ``bos``, ``eos`` and so on; None where the file names none of its vocabulary."""
    number = kvs.get(ROLES[role])
    return number if isinstance(number, int) and 0 <= number < len(kvs.get(T.LIST) or ()) else None


def end_tokens(kvs: Mapping[str, Any]) -> list[int]:
    """Ids that end generation in llama.cpp by the file's metadata: the ends of a text, of a turn, of a message."""
    size = len(kvs.get(T.LIST) or ())
    values = (kvs.get(key) for key in (T.EOS_ID, T.EOT_ID, T.EOM_ID))
    return [number for number in dict.fromkeys(values) if isinstance(number, int) and 0 <= number < size]
