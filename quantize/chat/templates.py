"""A model's own chat templates and special tokens, as its folder or its GGUF file holds them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantize.chat.render import Message, render
from quantize.checkpoint.tokenizer import token_text
from quantize.errors import BadInput
from quantize.files import files_inside, inside, read_json, read_text

DEFAULT = "default"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: what templates read beside messages
_NAMES = re.compile(r"\b(?:" + "|".join(ROLES) + r")\b")


@dataclass(frozen=True)
class ChatTemplate:
    """``special``: what the template sees besides messages. ``where``: the folder or file it came from, for errors."""

    text: str
    special: Mapping[str, str]
    where: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, open_end: bool = False) -> str:
        """Errors: as ``quantize.chat.render.render``."""
        settings = {"where": self.where, "add_generation_prompt": add_generation_prompt, "open_end": open_end}
        return render(self.text, messages, self.special, **settings)  # type: ignore[arg-type]


def folder_template(folder: Path, name: str = "") -> ChatTemplate:
    """The default template, or the one called ``name``. Errors: BadInput where the folder has none."""
    text = _choose(folder, folder_templates(folder), name)
    return ChatTemplate(text, special_tokens(folder, frozenset(_NAMES.findall(text))), str(folder))


def gguf_template(path: Path, name: str = "") -> ChatTemplate:
    """As ``folder_template``, from the file's metadata: what the template sees besides the messages are its special tokens."""
    from quantize.gguf.container.reader import read_gguf
    from quantize.gguf.tokenizer.chat_templates import special_tokens as special_tokens_of
    from quantize.gguf.tokenizer.chat_templates import templates_of

    kvs = read_gguf(path).kvs
    return ChatTemplate(_choose(path, templates_of(kvs), name), special_tokens_of(kvs), str(path))


def _choose(where: Path, templates: dict[str, str], name: str) -> str:
    if not templates:
        raise BadInput(f"{where}: has no chat template; drop --apply-chat-template")
    if (name or DEFAULT) not in templates:
        raise BadInput(
            f"{where}: has no chat template called {name or DEFAULT!r}; give --chat-template with one of {', '.join(templates)}"
        )
    return templates[name or DEFAULT]


def folder_templates(folder: Path) -> dict[str, str]:
    """Name -> template, ``default`` first: chat_template.jinja and additional_chat_templates, and only where there are none, what
    tokenizer_config.json (else chat_template.json, where processors keep theirs) says, as transformers has it.

    Errors: BadInput where the files are not what they should be.
    """
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        found[DEFAULT] = read_text(inside(folder, "chat_template.jinja"))
    more = folder / "additional_chat_templates"
    if more.is_dir():
        inside(folder, more.name)
        found |= {path.stem: read_text(path) for path in files_inside(more, "*.jinja")}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not found and (folder / name).is_file():
            found = _declared(folder / name, read_json(inside(folder, name)).get("chat_template"))
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def _declared(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("template"), str) for e in entries):
        raise BadInput(f"{path}: chat_template: expected a text or a list of objects with name and template")
    return {entry["name"]: entry["template"] for entry in entries}


@lru_cache(maxsize=8)
def special_tokens(folder: Path, names: frozenset[str]) -> Mapping[str, str]:
    """``bos_token`` and so on -> its text, of what transformers' tokenizer of the folder calls so.

    Its files say it where tokenizer_config.json has a word on each of ``names``; else its class may know more, and is asked.
    """
    config = _json(folder, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # transformers reads this file in older folders only
        config = config | _json(folder, "special_tokens_map.json")
    if not names <= set(config) and (known := _of_class(folder)) is not None:
        return known
    return {role: text for role in ROLES if (text := token_text(config.get(role))) is not None}


def _of_class(folder: Path) -> dict[str, str] | None:
    """None where transformers has no class for the folder, or does not open it."""
    from transformers import AutoTokenizer

    from quantize.checkpoint.library_folder import library_folder
    from quantize.quiet import quiet

    try:
        with quiet(), library_folder(folder, False) as seen:
            tokenizer = AutoTokenizer.from_pretrained(str(seen), trust_remote_code=False, local_files_only=True)
            return dict(tokenizer.special_tokens_map)
    except Exception:  # any library's; the folder's own files are what is left
        return None


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(inside(folder, name)) if (folder / name).is_file() else {}
