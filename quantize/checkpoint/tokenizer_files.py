"""The files of a tokenizer, read within bounds before a library sees them: sizes, depth, ids, how much a text
may grow.

An id far beyond the entries costs nothing in the file and gigabytes wherever a table is made of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, QuantwrightError
from quantize.files import read_json
from quantize.terminal import printable

#: ids may leave gaps: this many for each entry, and a margin for tokens added far behind
GAPS, MARGIN = 8, 65_536
#: by how much the replacements of a normalizer, one after the other, may lengthen a text
MAX_GROWTH = 1000.0
LARGEST_SCORE = 1e30
LARGEST_VOCABULARY = 262_144  # Gemma's


@contextmanager
def library(path: Path, what: str) -> Iterator[None]:
    """Errors: BadInput, ``PATH: WHAT``, for whatever a tokenizer library raises: bare exceptions, and panics
    of its Rust."""
    try:
        yield
    except (QuantwrightError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise BadInput(f"{path}: {what} ({printable(error, 300)}); fetch it again") from None


def read_if_there(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Errors: BadInput."""
    return read_json(path) if path.is_file() else {}


def token_id(path: Path, number: Any, entries: int = LARGEST_VOCABULARY) -> int:
    """``number`` as a token id in a file of ``entries`` tokens. Errors: BadInput where it is not one, or far
    too large."""
    try:
        known = int(number)
        if known < 0 or isinstance(number, bool) or (isinstance(number, float) and number != known):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{path}: {printable(number, 80)!r} is not a token id; fetch the file again") from None
    if known > GAPS * entries + MARGIN:
        raise BadInput(
            f"{path}: has the token id {printable(known, 40)}, and {entries:,} tokens; "
            f"expected ids from 0 to at most {GAPS * entries + MARGIN:,}; fetch the file again"
        )
    return known


def read_definition(path: Path) -> dict[str, Any]:
    """tokenizer.json. Errors: BadInput where it has no vocabulary, ids far beyond it, or rules that make
    texts explode."""
    data = read_json(path)
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, (dict, list)):
        raise BadInput(f"{path}: not a tokenizer: has no vocabulary (model.vocab); fetch it again")
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise BadInput(f"{path}: added_tokens is not a list of objects; fetch it again")
    entries = len(vocabulary) + len(added)
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    for number in [*ids, *(entry.get("id") for entry in added)]:
        if type(number) is not int:
            raise BadInput(f"{path}: {printable(repr(number), 80)} is not a token id; fetch it again")
        token_id(path, number, entries)
    if isinstance(vocabulary, list):
        for entry in vocabulary:
            if not isinstance(entry, list) or len(entry) != 2 or not _is_score(entry[1]):
                raise BadInput(
                    f"{path}: {printable(repr(entry), 80)} is not a token with its score; fetch it again"
                )
    if _growth(data.get("normalizer")) > MAX_GROWTH or _growth(data.get("decoder")) > MAX_GROWTH:
        raise BadInput(f"{path}: its rules make a text grow more than {MAX_GROWTH:g} times; fetch it again")
    return data


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_SCORE


def _growth(node: Any) -> float:
    """At most how many bytes one byte becomes: replacements multiply."""
    if isinstance(node, list):
        product = 1.0
        for child in node:
            product *= _growth(child)
        return min(product, 1e300)
    if not isinstance(node, dict):
        return 1.0
    own = 1.0
    text = node.get("content") if node.get("type") == "Replace" else node.get("prepend")
    if isinstance(text, str):
        pattern = node.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        own = max(1.0, len(text.encode()) / max(1, len(literal.encode()) if isinstance(literal, str) else 1))
    return own * _growth(node.get("normalizers")) * _growth(node.get("decoders"))
