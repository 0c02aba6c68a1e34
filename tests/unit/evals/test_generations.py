"""Prompts that are cut from a text."""

import pytest

from evals.generations import prompts_from
from quantize.errors import BadInput


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (" ".join(f"w{n}" for n in range(300)), " ".join(f"w{n}" for n in range(100, 124))),
        ("量化模型的质量和速度。" * 40, ("量化模型的质量和速度。" * 40)[146 : 146 + 48]),
        ("\n".join("量化模型的质量和速度要一起看才有意义。" for _ in range(40)), None),
    ],
)
def test_prompts_are_cut_from_a_text_with_or_without_spaces(text: str, prompt: str | None) -> None:
    found = prompts_from(text)
    assert len(found) == 3
    assert all(part in " ".join(text.split()) for part in found)
    assert max(map(len, found)) < 150
    assert prompt is None or found[1] == prompt
    for short in ("some words only", "太短的文本没有空格所以算字"):
        with pytest.raises(BadInput, match=r"3 words|13 characters"):
            prompts_from(short)
