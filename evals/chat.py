"""A model's own chat template, as its folder holds it, rendered by transformers in Jinja's sandbox."""

import hashlib
from pathlib import Path
from typing import Any

from quantize.errors import BadInput


class ChatTemplate:
    def __init__(self, folder: Path):
        """Errors: BadInput where the folder has no chat template."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder}: transformers cannot open its tokenizer: {str(error).splitlines()[0]}") from None
        if not self._tokenizer.chat_template:
            raise BadInput(f"{folder}: has no chat template; drop --apply-chat-template")
        self.text = str(self._tokenizer.get_chat_template())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Messages ``{"role", "content"}`` -> the text that is fed; without a generation prompt the last message is left open."""
        return str(
            self._tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
