"""What a source's model card says: licence, languages, tags, names. The manifest, a GGUF file's metadata and
the published card all take it from here.

A card that cannot be read, or an entry of another kind than expected, is left out, with a remark: a
conversion does not depend on it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.files import MIB, front_matter, inside, read_text

CARD = "README.md"
MAX_LICENSE_BYTES = 4 * MIB
_NAMES = ("name", "author", "version", "organization", "description", "finetune", "basename", "size_label")
_PLACES = ("url", "doi", "uuid", "repo_url")
#: what is one text, what is one or several, and what is one or several texts or mappings of texts
_TEXTS = (
    *_NAMES, *_PLACES, *(f"model_{name}" for name in (*_NAMES, *_PLACES)), "model_creator", "model_type",
    "license_name", "license_link",
)  # fmt: skip
_LISTS = ("license", "tags", "pipeline_tag", "language", "languages")
_REFERENCES = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")
#: LICENSE, LICENCE.txt, MODEL_LICENSE, LICENSE-MODEL, COPYING, NOTICE, USE_POLICY.md (Llama)
LICENSE_FILE = re.compile(
    r"(model[-_])?(licen[cs]e|copying|notice|use_policy)([-_][\w-]+)?(\.(txt|md|rst|pdf))?", re.IGNORECASE
)


@dataclass(frozen=True)
class ModelCard:
    """``front``: the card's head, with only text, lists of text and references of the expected kinds.
    ``remarks``: what was left out of it, and why."""

    front: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[tuple[str, str], ...] = ()

    @property
    def license(self) -> str | None:
        """Several are joined with commas."""
        return ",".join(self._list("license")) or None

    @property
    def license_name(self) -> str | None:
        return self._list("license_name")[0] if "license_name" in self.front else None

    @property
    def license_link(self) -> str | None:
        return self._list("license_link")[0] if "license_link" in self.front else None

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._list("language"), *self._list("languages")]))

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._list("tags")))

    def _list(self, key: str) -> list[str]:
        value = self.front.get(key, [])
        return [value] if isinstance(value, str) else list(value)


def read_model_card(folder: Path) -> ModelCard:
    """The card in ``folder``; empty where there is none. Errors: BadInput where it is a link that leads out
    of the folder."""
    path = inside(folder, CARD)
    if not path.exists():
        return ModelCard()
    try:
        found = front_matter(read_text(path, 16 * MIB), CARD)
    except BadInput as error:
        why = str(error).removeprefix(f"{path}: ").removeprefix(f"{CARD}: ")
        return ModelCard(remarks=(("not read: licence, languages and tags are missing", why),))
    front: dict[str, Any] = {}
    remarks: list[tuple[str, str]] = []
    for key, value in found.items():
        kept = _kept(key, value, remarks) if key in (*_TEXTS, *_LISTS, *_REFERENCES) else None
        if kept:
            front[key] = kept
    return ModelCard(front, tuple(remarks))


def _kept(key: str, value: Any, remarks: list[tuple[str, str]]) -> Any:
    """What of a value is of the expected kind; empty entries are dropped without a word."""
    if isinstance(value, str) or value is None:
        return (value or "").strip()
    if isinstance(value, list) and key not in _TEXTS:
        kept = [_entry(key, entry, remarks) for entry in value]
        return [entry for entry in kept if entry]
    if isinstance(value, dict) and key in _REFERENCES:
        return [_entry(key, value, remarks)]
    return _left_out(key, value, remarks)


def _entry(key: str, entry: Any, remarks: list[tuple[str, str]]) -> Any:
    if isinstance(entry, str) or entry is None:
        return (entry or "").strip()
    if isinstance(entry, dict) and key in _REFERENCES:
        return {
            name: text
            for name, text in entry.items()
            if isinstance(name, str) and isinstance(text, str) and text
        }
    return _left_out(key, entry, remarks)


def _left_out(key: str, value: Any, remarks: list[tuple[str, str]]) -> None:
    kind = (
        "a list"
        if isinstance(value, list)
        else "a mapping"
        if isinstance(value, dict)
        else type(value).__name__
    )
    remark = (f"{key}: an entry is left out", f"expected text, found {kind}")
    if remark not in remarks:
        remarks.append(remark)


def license_files(folder: Path) -> Iterator[Path]:
    """The licence files in ``folder``, by their usual names. Errors: BadInput where one is a link that leads
    out of the folder."""
    for path in sorted(folder.iterdir()):
        if LICENSE_FILE.fullmatch(path.name):
            file = inside(folder, path.name)
            if file.is_file() and file.stat().st_size <= MAX_LICENSE_BYTES:
                yield file
