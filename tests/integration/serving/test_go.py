"""Our reading of Go's templates against Go's own; every template of the tests, and published ones."""

from pathlib import Path

import pytest
from chat_cases import EXPRESSIBLE, SPECIAL
from go_templates import go_texts, needs_go

from quantize.chat.render import TemplateRefuses
from quantize.chat.templates import ChatTemplate, folder_template
from quantize.errors import BadInput
from serving.chat_shape import expected, learn
from serving.conversations import conversations
from serving.go_reader import GoError, GoTemplate
from serving.go_template import written

PUBLISHED = ("deepseek_v3", "gemma3", "llama3", "qwen3")


def compare(templates: list[tuple[ChatTemplate, str]], folder: Path) -> int:
    cases, wanted = [], []
    for template, bos in templates:
        go = written(learn(template, bos))
        for what, messages in conversations(template).items():
            try:
                text: str | None = expected(template, messages, bos)
            except TemplateRefuses:
                text = None
            except BadInput:
                continue
            try:
                ours: str | None = GoTemplate(go).execute(messages)
            except GoError:
                ours = None
            cases.append((go, messages))
            wanted.append((f"{template.where}: {what}", text, ours))
    for (what, text, ours), (found, error) in zip(wanted, go_texts(folder, cases), strict=True):
        assert (None if error else found) == text == ours, f"{what}: {error}"
    return len(cases)


@needs_go
def test_go_and_jinja_and_our_reading_write_the_same(tmp_path: Path) -> None:
    templates = [
        (ChatTemplate(text, SPECIAL, name), b) for name, text in EXPRESSIBLE.items() for b in ("", "<s>")
    ]
    assert compare(templates, tmp_path) > 250


@needs_go
def test_published_templates_in_go(shared: Path, tmp_path: Path) -> None:
    found = [folder_template(shared / "tokenizers" / name) for name in PUBLISHED]
    templates = [(each, bos) for each in found for bos in ("", each.special.get("bos_token", ""))]
    assert compare(templates, tmp_path) > 100


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_have_a_shape(shared: Path, name: str) -> None:
    template = folder_template(shared / "tokenizers" / name)
    assert learn(template, template.special.get("bos_token", "")).lost == ()


@needs_go
def test_our_errors_are_gos(tmp_path: Path) -> None:
    bad = ['{{ index "" "why not" }}', "{{ slice .System 5 }}"]
    assert all(error for _, error in go_texts(tmp_path, [(text, []) for text in bad]))
    for text in bad:
        with pytest.raises(GoError):
            GoTemplate(text).execute([])
