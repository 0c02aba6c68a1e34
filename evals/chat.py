"""A model's own chat template, as its folder or its GGUF file holds it, rendered by transformers in Jinja's sandbox."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantize.errors import BadInput

DEFAULT = "default"
Messages = list[dict[str, str]]


class ChatTemplate:
    """``apply(messages, add_generation_prompt, continue_final_message)`` -> text."""

    def __init__(self, text: str, apply: Callable[[Messages, bool, bool], str]):
        self.text = text
        self._apply = apply

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, history: Messages, add_generation_prompt: bool) -> str:
        """Messages ``{"role", "content"}`` -> the text that is fed; without a generation prompt the last message is left open."""
        return self._apply(history, add_generation_prompt, not add_generation_prompt)


def folder_template(folder: Path, name: str = "") -> ChatTemplate:
    """The default template, or the one called ``name``. Errors: BadInput where the folder has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: transformers cannot open its tokenizer: {str(error).splitlines()[0]}") from None
    found = tokenizer.chat_template or {}
    text = _choose(folder, {DEFAULT: found} if isinstance(found, str) else dict(found), name)

    def apply(messages: Messages, prompt: bool, open_end: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=prompt, continue_final_message=open_end
            )
        )

    return ChatTemplate(text, apply)


def gguf_template(path: Path, name: str = "") -> ChatTemplate:
    """As ``folder_template``, from the file's metadata: what the template sees besides the messages are its special tokens."""
    from transformers.utils.chat_template_utils import render_jinja_template

    from quantize.gguf.chat_templates import special_tokens, templates_of
    from quantize.gguf.reader import read_gguf

    kvs = read_gguf(path).kvs
    text = _choose(path, templates_of(kvs), name)
    special: dict[str, Any] = dict(special_tokens(kvs))

    def apply(messages: Messages, prompt: bool, open_end: bool) -> str:
        rendered: Any = render_jinja_template(
            [messages], chat_template=text, add_generation_prompt=prompt, continue_final_message=open_end, **special
        )
        return str(rendered[0][0])  # of (texts, places of what the model said)

    return ChatTemplate(text, apply)


def _choose(where: Path, templates: dict[str, str], name: str) -> str:
    if not templates:
        raise BadInput(f"{where}: has no chat template; drop --apply-chat-template")
    if (name or DEFAULT) not in templates:
        raise BadInput(
            f"{where}: has no chat template called {name or DEFAULT!r}; give --chat-template with one of {', '.join(templates)}"
        )
    return templates[name or DEFAULT]
