"""How llama.cpp splits text into words, reimplemented in Python: its regexes with its own reading of Unicode.

llama.cpp has no Unicode regexes. It replaces every character by one byte that stands for its category,
rewrites ``\\p{L}`` and the like to those bytes, and uses the C++ library's ASCII regexes; where a pattern
names no category it matches wide characters. That is why some patterns cannot follow the tokenizer they were
made for (upper and lower case beyond ASCII, combining marks), and why this is needed: to tell its limits from
a wrong choice. A few patterns are hand-written there; ``_SPECIAL`` has them.

Source: llama.cpp src/unicode.cpp (``unicode_regex_split`` and the ``unicode_regex_split_custom_*``
functions).
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from quantize.gguf.tokenizer.pretokenizers import CONTRACTION, SPLITS

_CATEGORY_BYTES = {"N": "\xd1", "L": "\xd2", "P": "\xd3", "M": "\xd4", "S": "\xd5"}
_ASCII_MEMBERS = {
    "N": "0-9", "L": "A-Za-z", "P": r"!-#%-*,-/:-;?-@\[-\]_\{\}", "M": "", "S": r"\$\+<->^`\|\~",
}  # fmt: skip
_OTHER = "\xd0"
_HAN = "\xd6"
_SPACES = {0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
_CATEGORY = re.compile(r"\\p\{(N|L[ultmo]?|P|M|S)\}")

# Kimi K2's pattern, hand-written in llama.cpp; \xd6 stands for a Han character, which is no \p{L} in the
# letters' runs.
_KIMI = re.compile(
    "\xd6+|[^\r\n0-9A-Za-z\xd1\xd2\xd6]?[A-Za-z\xd2]+" + CONTRACTION + "?|[0-9\xd1]{1,3}"
    "| ?[^\\s0-9A-Za-z\xd1\xd2\xd6]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    re.ASCII,
)


def split(kind: str, text: str, *, meant: bool = False) -> list[str]:
    """Words of ``text`` as llama.cpp splits them for a pre-tokenizer with ``SPLITS[kind]``; joined they are
    ``text``.

    ``meant``: as its code for digits is meant to split. (It leaves the text before a number on the number's
    first digits.)
    """
    pieces = [text]
    for pattern in SPLITS[kind]:
        if pattern in (r"\p{AFMoE_digits}", r"\d{1,3}(?=(?:\d{3})*\b)"):
            pieces = [word for piece in pieces for word in _digits_from_the_right(piece, glued=not meant)]
        else:
            pieces = [word for piece in pieces for word in _apply(pattern, piece)]
    return pieces


def _apply(pattern: str, text: str) -> Iterator[str]:
    if pattern == r"\p{Han}+":
        compiled, seen = _KIMI, _collapse(text, han=True)
    elif _CATEGORY.search(pattern):
        compiled, seen = _compiled(pattern), _collapse(text)
    else:
        compiled = re.compile(pattern, re.ASCII)
        seen = "".join("\x0b" if ord(c) in _SPACES else c for c in text)
    start = 0
    for match in compiled.finditer(seen):
        if match.start() > start:
            yield text[start : match.start()]
        if match.end() > match.start():
            yield text[match.start() : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """``\\p{X}`` -> the bytes that stand for it, bracketed outside a class."""
    out, inside, i = [], False, 0
    while i < len(pattern):
        if found := _CATEGORY.match(pattern, i):
            letter = found[1][0]
            members = _CATEGORY_BYTES[letter] + _ASCII_MEMBERS[letter]
            out.append(members if inside else f"[{members}]")
            i = found.end()
            continue
        if pattern[i] == "\\":
            out.append(pattern[i : i + 2])
            i += 2
            continue
        if pattern[i] == "[" and not inside:
            inside = True
        elif pattern[i] == "]" and inside:
            inside = False
        out.append(pattern[i])
        i += 1
    return re.compile("".join(out), re.ASCII)


def _collapse(text: str, han: bool = False) -> str:
    return "".join(c if c < "\x80" else _category_byte(c, han) for c in text)


@cache
def _category_byte(character: str, han: bool) -> str:
    if ord(character) in _SPACES:
        return "\x0b"
    if han and is_han(ord(character)):
        return _HAN
    return _CATEGORY_BYTES.get(unicodedata.category(character)[0], _OTHER)


def is_han(code: int) -> bool:
    return (
        0x3400 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2EBEF
        or 0x2F800 <= code <= 0x2FA1F
    )


def _digits_from_the_right(text: str, glued: bool) -> Iterator[str]:
    """Runs of digits in threes counted from the right; the text before a run whole, or ``glued`` to its first
    digits."""
    start = 0
    for run in re.finditer("[0-9\xd1]+", _collapse(text)):
        if run.start() > start and not glued:
            yield text[start : run.start()]
            start = run.start()
        end = run.start() + (len(run[0]) % 3 or 3)
        while end <= run.end():
            yield text[start:end]
            start, end = end, end + 3
    if start < len(text):
        yield text[start:]
