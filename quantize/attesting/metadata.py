"""The metadata of a GGUF file, or a folder's config, against what the source gives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from quantize.attesting.outcome import Group, MetadataDifference, shown
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.container.writer import Kvs, pack_value

#: what a program reads the file by, beside the hyperparameters
READ_BY = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
#: where a file is split, which its parts say for themselves
SPLIT = "split."
#: of config.json: what says who wrote it
ABOUT_CONFIG = ("transformers_version", "_name_or_path")


def group_of(key: str) -> Group:
    if key.startswith("tokenizer."):
        return "tokenizer"
    if key in READ_BY or not key.startswith(("general.", "quantize.")):
        return "settings"
    return "about"


def gguf_metadata(file: GgufFile, derived: Kvs) -> list[MetadataDifference]:
    """Key by key, by value; which number type holds a whole number is not compared."""
    out = []
    for key in dict.fromkeys([*derived, *file.kvs]):
        if key.startswith(SPLIT):
            continue
        there = file.kvs.get(key)
        value, kind = derived.get(key, (None, GGUFValueType.STRING))
        if key not in file.kvs or key not in derived or not _same(key, there, value, kind):
            out.append(MetadataDifference(key, _said(there, value), _said(value, there), group_of(key)))
    return out


def _same(key: str, there: Any, value: Any, kind: GGUFValueType) -> bool:
    """A value as it is written: a float has 32 bits."""
    try:
        return pack_value(key, there, kind) == pack_value(key, value, kind)
    except BadInput:  # it is of another type
        return False


def _said(value: Any, other: Any) -> str | None:
    """Lists by their length and where they part; long texts by where they part."""
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        at = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), None)
        where = f", number {at} {value[at]!r}" if at is not None else ""
        return shown(f"{len(value)} entries{where}")
    if isinstance(value, str) and isinstance(other, str) and max(len(value), len(other)) > 80:
        at = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), 0)
        return shown(f"{len(value)} characters, from {at} on {value[at : at + 40]!r}")
    if isinstance(value, (list, tuple)):
        return f"{len(value)} entries"
    return shown(value)


def config_metadata(name: str, there: Path, derived: Path) -> list[MetadataDifference]:
    """Of a JSON file in two folders, member by member. Errors: BadInput where one cannot be read."""
    a, b = read_json(there), read_json(derived)
    group: Group = "tokenizer" if "token" in name or "special" in name else "settings"
    return [
        MetadataDifference(key, _json(a, key), _json(b, key), "about" if key in ABOUT_CONFIG else group, name)
        for key in dict.fromkeys([*a, *b])
        if a.get(key, ...) != b.get(key, ...)
    ]


def _json(values: Mapping[str, Any], key: str) -> str | None:
    return shown(json.dumps(values[key], ensure_ascii=False)) if key in values else None
