"""Tokens that the files beside a tokenizer.json add to it: which, with what flags, in transformers' order
(its ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend.__init__``).

First those of tokenizer_config.json's added_tokens_decoder, by id; without that key those of
added_tokens.json. Then the tokens that have a role (``eos_token`` and so on) and the extra special ones. A
token that the vocabulary has keeps its id and is from now on found before the text is split; another gets the
next free id, whatever id was declared for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantize.checkpoint.tokenizer_files import read_if_there, token_id
from quantize.errors import BadInput

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_declared(backend: Any, folder: Path) -> None:
    """Add to ``backend``, a ``tokenizers.Tokenizer``, what the other files of ``folder`` declare. Errors:
    BadInput."""
    declared, named, extra = _declared(folder)
    known = backend.get_added_tokens_decoder().values()
    same = {repr(token) for token in known}
    new = [token for _, token in sorted(declared.items()) if repr(token) not in same]
    there = {token.content for token in [*known, *new]}
    roles = {token.content for token in named}
    for token in [*named, *extra]:
        if token.content not in there:
            new.append(token)
            there.add(token.content)
    for token in new:
        token.special = token.special or token.content in roles
    backend.add_tokens([token for token in new if token.content])


def added_to_pieces(
    folder: Path, size: int, find: Callable[[str], int | None]
) -> dict[int, tuple[str, bool]]:
    """The same for a SentencePiece model of ``size`` pieces: id -> (text, special). Errors: BadInput."""
    declared, named, extra = _declared(folder)
    tokens = [token for _, token in sorted(declared.items()) if token.content]
    tokens += [token for token in [*named, *extra] if find(token.content) is None]
    added: dict[int, tuple[str, bool]] = {}
    ids: dict[str, int] = {}
    for token in tokens:
        number = find(token.content)
        if token.content not in ids:
            ids[token.content] = max([size - 1, *added]) + 1 if number is None else number
            added[ids[token.content]] = (token.content, bool(token.special))
    return added


def _declared(folder: Path) -> tuple[dict[int, Any], list[Any], list[Any]]:
    """(id -> token, tokens with a role, extra ones)."""
    path = folder / "tokenizer_config.json"
    config = read_if_there(path)
    entries = config.get("added_tokens_decoder")
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    roles = {key: config.get(key) for key in ROLES}
    more = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") and key not in ROLES and _text(value)
    }
    declared: dict[int, Any] = {}
    if entries is not None:
        if not isinstance(entries, dict):
            raise BadInput(f"{path}: added_tokens_decoder: expected an object of ids; fetch the file again")
        declared = {token_id(path, number): _token(entry, path) for number, entry in entries.items()}
    else:
        listed = read_if_there(folder / "special_tokens_map.json")
        roles |= {key: _special(listed[key]) for key in ROLES if listed.get(key)}
        extra = listed.get("extra_special_tokens") or listed.get("additional_special_tokens") or extra
        special = {_text(entry) for entry in [*roles.values(), *_listed(extra)]}
        path = folder / "added_tokens.json"
        for text, number in read_if_there(path).items():
            flags = {"special": text in special, "normalized": text not in special}
            declared[token_id(path, number)] = _token({"content": text, **flags}, path)
    if isinstance(extra, dict):
        more, extra = more | extra, []
    by_text = {token.content: token for token in declared.values()}

    def tokens(found: list[Any]) -> list[Any]:
        return [by_text.get(_text(entry)) or _token(entry, path) for entry in found if _text(entry)]

    return declared, tokens([*roles.values(), *more.values()]), tokens(_listed(extra))


def _special(entry: Any) -> Any:
    return {**entry, "special": True} if isinstance(entry, dict) else entry


def _listed(extra: Any) -> list[Any]:
    return list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []


def _text(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _token(entry: Any, path: Path) -> Any:
    """A bare text is a special token."""
    from tokenizers import AddedToken

    text = _text(entry)
    if text is None:
        raise BadInput(
            f"{path}: {str(entry)[:80]!r}: expected a token, as its text or an object with content"
        )
    whole = entry if isinstance(entry, dict) else {"special": True}
    try:
        return AddedToken(text, **{key: whole[key] for key in FLAGS if isinstance(whole.get(key), bool)})
    except (TypeError, ValueError) as error:  # half a character
        raise BadInput(f"{path}: {text[:80]!r}: not a token ({error})") from None
