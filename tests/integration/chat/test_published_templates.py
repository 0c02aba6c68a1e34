"""Templates of published models, against what transformers makes of them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from quantize.chat.templates import folder_template


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3", "deepseek_v3"])
def test_published_templates(shared: Path, name: str) -> None:
    folder = shared / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"the tokenizer {name} is absent")
    tokenizer, template = AutoTokenizer.from_pretrained(folder), folder_template(folder)
    assert template.text == tokenizer.chat_template
    chat = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": " It's é. "}]
    for messages in (chat, [{"role": "system", "content": "S"}, *chat]):
        for prompt, open_end in ((False, False), (True, False), (False, True)):
            wanted = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, continue_final_message=open_end
            )
            assert template.render(messages, prompt, open_end) == wanted
