"""A model's own chat templates and special tokens, as its folder or its GGUF file holds them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantize.chat.render import Message, render
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.templates import DEFAULT, folder_templates
from quantize.checkpoint.tokenizer import token_text
from quantize.errors import BadInput
from quantize.files import inside, read_json
from quantize.quiet import quiet

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: what templates read beside messages
_NAMES = re.compile(r"\b(?:" + "|".join(ROLES) + r")\b")


@dataclass(frozen=True)
class ChatTemplate:
    """``special``: what the template sees besides messages. ``where``: the folder or file it came from, for
    errors."""

    text: str
    special: Mapping[str, str]
    where: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, open_end: bool = False
    ) -> str:
        """Errors: as ``quantize.chat.render.render``."""
        settings = {"where": self.where, "add_generation_prompt": add_generation_prompt, "open_end": open_end}
        return render(self.text, messages, self.special, **settings)  # type: ignore[arg-type]


def folder_template(folder: Path, name: str = "") -> ChatTemplate:
    """The default template, or the one called ``name``. Errors: BadInput where the folder has none."""
    text = choose(folder, folder_templates(folder), name)
    return ChatTemplate(text, special_tokens(folder, frozenset(_NAMES.findall(text))), str(folder))


def choose(where: Path, templates: dict[str, str], name: str) -> str:
    """The template called ``name``, or the default one. Errors: BadInput where there is none."""
    if not templates:
        raise BadInput(f"{where}: has no chat template; drop --apply-chat-template")
    if (name or DEFAULT) not in templates:
        raise BadInput(
            f"{where}: has no chat template called {name or DEFAULT!r}; give --chat-template with one of "
            f"{', '.join(templates)}"
        )
    return templates[name or DEFAULT]


@lru_cache(maxsize=8)
def special_tokens(folder: Path, names: frozenset[str]) -> Mapping[str, str]:
    """``bos_token`` and so on -> its text, as transformers' tokenizer of the folder names it.

    If tokenizer_config.json covers each of ``names``, the files decide; otherwise its class, which may know
    more.
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

    try:
        with quiet(), library_folder(folder, False) as seen:
            tokenizer = AutoTokenizer.from_pretrained(
                str(seen), trust_remote_code=False, local_files_only=True
            )
            return dict(tokenizer.special_tokens_map)
    except Exception:  # any library's; the folder's own files are what is left
        return None


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(inside(folder, name)) if (folder / name).is_file() else {}
