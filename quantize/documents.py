"""Text as people save it: every text, task, prompts file or conversation that a person names is read here.

A UTF-8 file with LF line ends is read byte for byte. Byte order marks, CR LF, UTF-16 and Windows-1252 (which
holds Latin-1) are read as what they are, and ``Document.read_as`` says so.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.files import parse_json, read_bytes

MAX_TEXT_BYTES = 8 << 30  # the person's own file: as much as memory holds
SAMPLE_BYTES = 1 << 16
#: of the bytes of a text in a Western language, those beyond ASCII; of one in another script most are
MOST_LATIN = 0.3
LINES_OF_JSON = (".jsonl", ".ndjson", ".jsonlines")
TABLES = {".csv": ",", ".tsv": "\t"}
ROWS = (*LINES_OF_JSON, ".json", *TABLES)

#: longer marks first: UTF-32's begins as UTF-16's does
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"), (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"), (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)  # fmt: skip
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True)
class Document:
    """``text`` has LF line ends and no byte order mark. ``read_as``: what was assumed or changed; "" for
    UTF-8 with LF."""

    text: str
    read_as: str

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


def read_document(path: Path) -> Document:
    """Errors: BadInput where the file is missing, empty, or not recognisable as text."""
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; give a text file")
    if not path.exists():
        raise BadInput(f"{path}: no such text file")
    text, read_as = _decoded(read_bytes(path, MAX_TEXT_BYTES), path)
    if not text.strip():
        raise BadInput(f"{path}: is empty; give a text file with some text")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        read_as = f"{read_as or 'UTF-8'} with CR LF line ends"
    return Document(text, read_as)


def _decoded(raw: bytes, path: Path) -> tuple[str, str]:
    for mark, encoding, name in _MARKS:
        if raw.startswith(mark):
            try:
                return raw[len(mark) :].decode(encoding), name
            except UnicodeDecodeError as error:
                at = len(mark) + error.start
                raise BadInput(
                    f"{path}: not UTF-8 text, and byte {at} is not {name} "
                    "although its first bytes say so; save it as UTF-8"
                ) from None
    if encoding := _utf16(raw[:SAMPLE_BYTES]):
        try:
            return raw.decode(encoding), "UTF-16 (without a byte order mark)"
        except UnicodeDecodeError:
            pass
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        if not _is_latin(raw):
            raise BadInput(
                f"{path}: not UTF-8 text (byte {error.start}), nor UTF-16 or Latin-1; save it as UTF-8"
            ) from None
    try:
        return raw.decode("cp1252"), "Windows-1252 (it is not UTF-8)"
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "Latin-1 (it is not UTF-8)"


def _utf16(sample: bytes) -> str:
    """The encoding whose every second byte is zero, as it is of text that is ASCII for the most part; ""
    where neither is."""
    pairs = len(sample) // 2
    first, second = sample[0 : 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
    if pairs and max(first, second) > pairs / 4 and min(first, second) < pairs / 50:
        return "utf-16-le" if second > first else "utf-16-be"
    return ""


def _is_latin(raw: bytes) -> bool:
    """Whether bytes that are not UTF-8 can be a Western text: no control characters, few beyond ASCII, and
    not UTF-8 with a little damage."""
    if _NO_TEXT.search(raw):
        return False
    beyond = len(raw) - len(raw.translate(None, bytes(range(128, 256))))
    tried = raw.decode("utf-8", errors="replace")
    broken = tried.count("\ufffd")
    whole = sum(1 for character in tried if character > "\x7f") - broken
    return beyond < MOST_LATIN * len(raw) and whole <= broken


def read_rows(path: Path, document: Document) -> Iterator[tuple[str, Any]]:
    """(``file:line``, item) of lines of JSON, of a JSON list, or of a table with a header, whichever the
    file's name says.

    Errors: BadInput naming the line.
    """
    if path.suffix in TABLES:
        yield from _table(path, document)
    elif path.suffix == ".json" and document.text.lstrip().startswith("["):
        for number, item in enumerate(
            parse_json(document.text.encode(), str(path), hint="expected a list of items"), 1
        ):
            yield f"{path}: item {number}", item
    else:
        for number, line in enumerate(document.lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_json(line.encode(), where, hint="expected one item per line")


def _table(path: Path, document: Document) -> Iterator[tuple[str, Any]]:
    longest = csv.field_size_limit(1 << 30)
    try:
        reader = csv.DictReader(io.StringIO(document.text, newline=""), delimiter=TABLES[path.suffix])
        for row in reader:
            yield f"{path}:{reader.line_num}", {name: value for name, value in row.items() if name}
    except csv.Error as error:
        raise BadInput(f"{path}: not a table with a header ({error}); save it again") from None
    finally:
        csv.field_size_limit(longest)
