"""A chat template's shape, learnt by rendering, and what Go makes of it: the texts are jinja's."""

from typing import Any

import pytest
from chat_cases import CHATML, EXPRESSIBLE, INEXPRESSIBLE, SPECIAL

from quantize.chat.render import TemplateRefuses
from quantize.chat.templates import ChatTemplate
from quantize.errors import BadInput, StepFailed
from serving.chat_shape import END, Place, Refused, Said, clock, cuts_reasoning, expected, learn
from serving.conversations import conversations
from serving.go_reader import GoError, GoTemplate
from serving.go_template import plain, quoted, written
from serving.ollama import differences


def of(text: str) -> ChatTemplate:
    return ChatTemplate(text, SPECIAL, "a template")


@pytest.mark.parametrize("bos", ["", "<s>"])
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_what_go_writes_is_what_the_chat_template_writes(name: str, bos: str) -> None:
    template = of(EXPRESSIBLE[name])
    shape = learn(template, bos)
    assert shape.lost == ()
    program = GoTemplate(written(shape))
    compared = 0
    for what, messages in conversations(template).items():
        try:
            wanted = expected(template, messages, bos)
        except TemplateRefuses:
            with pytest.raises(GoError):
                program.execute(messages)
            continue
        except BadInput:
            assert what == "an answer to go on with"
            continue
        assert program.execute(messages) == wanted, what
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_cannot_be_said_is_named(name: str) -> None:
    text, word = INEXPRESSIBLE[name]
    template = of(text)
    shape = learn(template, "")
    lost = differences(template, shape, written(shape), "")
    assert any(word in line for line in lost), lost


def test_places_of_chatml() -> None:
    shape = learn(of(CHATML), "")
    first = Place("start", "user", "none", True)
    assert shape.written[first] == ("<|im_start|>user\n", Said("turn", "keep", "keep"))
    assert shape.written[Place("user", END, "none", False)] == ("<|im_end|>\n<|im_start|>assistant\n",)
    assert shape.empty == "some"


def test_refusals_keep_their_reason() -> None:
    shape = learn(of(EXPRESSIBLE["no system allowed"]), "")
    assert shape.written[Place("start", "user", "some", True)] == Refused("System role not supported")
    with pytest.raises(GoError, match="System role not supported"):
        GoTemplate(written(shape)).execute(
            [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        )


def test_a_role_that_no_probe_has_is_refused() -> None:
    program = GoTemplate(written(learn(of(CHATML), "")))
    with pytest.raises(GoError, match="another role"):
        program.execute([{"role": "tool", "content": "42"}])


def test_a_template_that_refuses_everything_is_bad_input() -> None:
    with pytest.raises(BadInput, match="refuses every conversation"):
        learn(of("{{ raise_exception('no') }}"), "")


def test_a_template_that_does_not_end_is_stopped() -> None:
    with pytest.raises(BadInput, match="was stopped"):
        learn(of("{{ 'x' * 10 ** 12 }}"), "")


def test_the_clock_and_reasoning_are_seen() -> None:
    assert clock(of(INEXPRESSIBLE["the date"][0]))
    assert not clock(of("{% if false %}{{ strftime_now('%Y') }}{% endif %}" + CHATML))
    cut = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert cuts_reasoning(of(cut))
    assert not cuts_reasoning(of(CHATML))


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("<|im_start|>user\n", True),
        ("{{", False),
        ('a"""b', False),
        ('a"', False),
        ("\u00a0", False),
        ("\x07", False),
    ],
)
def test_plain_texts(text: str, whether: bool) -> None:
    assert plain(text) is whether


def test_quoted_texts_come_back() -> None:
    text = '""" {{ }} \\n \n\r\t\x07 \u00a0 é 🦙 \''
    assert '"""' not in quoted(text)
    assert GoTemplate("{{ " + quoted(text) + " }}").execute([]) == text


@pytest.mark.parametrize(
    "source", ["{{ if eq 1 1 }}x", "{{ end }}", '{{ printf "x" | len }}', "{{ range .Messages }}"]
)
def test_what_is_not_of_the_subset_is_an_error(source: str) -> None:
    with pytest.raises(StepFailed):
        GoTemplate(source).execute([])


def test_marks_are_read_where_they_stand() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": " a "}]
    for source, text in (
        ("{{ range $i, $m := .Messages }}{{ $i }}{{- $m.Content }}{{ end }}", None),
        ("x \n{{- range .Messages }}[{{ .Content -}} \n ]{{ end }}", "x[ a ]"),
        ('{{ if and (ge (len .Messages) 1) (not "") }}y{{ else }}n{{ end }}', "y"),
    ):
        if text is not None:
            assert GoTemplate(source).execute(messages) == text
