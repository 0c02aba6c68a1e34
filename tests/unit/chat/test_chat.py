"""Chat templates: the same text as transformers', and an end to those that would not end."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from quantize.chat import worker
from quantize.chat.render import TemplateRefuses, render
from quantize.chat.templates import special_tokens
from quantize.checkpoint.templates import folder_templates
from quantize.errors import BadInput

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "user", "content": 'Is 1 < 2 & "so"? \n'},
    {"role": "assistant", "content": " It's é 汉. \n", "thinking": "well", "tool_calls": None},
    {"role": "user", "content": "x"},
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    CHAT,
    CHAT[:2],
    [{"role": "system", "content": "S"}, *CHAT],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " look "}]}],
]
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 'ß'} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}",
    """
    {%- for m in messages %}
        {%- if loop.index0 == 1 %}{% continue %}{% endif %}
        {%- if loop.index0 == 3 %}{% break %}{% endif %}
        {{ m.content }}
    {% endfor %}
    """,
    "{% set ns = namespace(count=0, last='') %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{% "
    "set ns.last = m.role %}"
    "{% endfor %}{{ ns.count }}{{ ns.last }}{{ dict(a=1).items() | list }}{{ dict.fromkeys([1, 2], 3) }}",
    "{% for m in messages %}{% generation %}{% set inner = 1 %}{{ m.content }}{% endgeneration %}"
    "{{ inner is defined }}{% endfor %}",
    "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ "
    "m.get('tool_calls') }}"
    "{{ m.content }}{% endfor %}",
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% "
    "endfor %}"
    "{{ tools is none }}",
    "{{ messages[0].content.split('<')[0].strip() ~ missing }}{{ missing.further }}",
    "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
    "{% set ns = namespace(_x=1) %}",
    "{{ messages.append(1) }}",
    "{% if %}{{ content }}",
]


def theirs(template: str, messages: Any, **options: Any) -> str:
    """What transformers renders, or the kind of its refusal."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        return str(render_jinja_template([chat], chat_template=template, **options, **SPECIAL)[0][0])
    except TemplateError:
        return "refused"
    except (ValueError, TypeError):
        return "error"


def ours(template: str, messages: Any, **options: Any) -> str:
    try:
        return render(template, messages, SPECIAL, where="model", **options)
    except TemplateRefuses:
        return "refused"
    except BadInput:
        return "error"


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_same_text_as_transformers(template: str) -> None:
    for messages in CONVERSATIONS:
        before = json.dumps(messages)
        assert ours(template, messages) == theirs(template, messages)
        assert ours(template, messages, add_generation_prompt=True) == theirs(
            template, messages, add_generation_prompt=True
        )
        assert ours(template, messages, open_end=True) == theirs(
            template, messages, continue_final_message=True
        )
        assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{{ 7 ** (10 ** 9) }}", "processor time"),
        ("{{ lipsum(n=100000000) }}", "processor time"),
        ("{{ 'a' * 10 ** 12 }}", "MemoryError"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "MemoryError|time",
        ),
        ("{{ '%99999999999d' % 1 }}", "Error"),
        ("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}", "16,777,216 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("x" * (1 << 20) + "y", "1,048,576 characters"),
    ],
)
def test_what_does_not_end_or_grows_without_bound_is_ended(
    template: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(BadInput, match=reason) as caught:
        render(template, CHAT, SPECIAL, where="the model")
    assert str(caught.value).startswith("the model: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert render("{{ messages[0].role }}", CHAT, SPECIAL, where="model") == "user"  # the next is served


def test_a_folders_templates_are_those_that_transformers_finds(demo_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    folder = shutil.copytree(
        demo_checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert folder_templates(folder) == {}
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))
    assert folder_templates(folder) == {"default": "P"}  # as processors keep it
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert (
        folder_templates(folder)
        == AutoTokenizer.from_pretrained(folder).chat_template
        == {"default": "D", "tools": "T"}
    )
    (folder / "chat_template.jinja").write_text("J")
    assert (
        folder_templates(folder)
        == {"default": AutoTokenizer.from_pretrained(folder).chat_template}
        == {"default": "J"}
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "terse.jinja").write_text("S")
    assert (
        folder_templates(folder)
        == AutoTokenizer.from_pretrained(folder).chat_template
        == {"default": "J", "terse": "S"}
    )
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match=r"chat_template.jinja is a link to /etc/passwd, outside the folder"):
        folder_templates(folder)


def test_special_tokens_are_what_transformers_calls_so(demo_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    config = json.loads((demo_checkpoint / "tokenizer_config.json").read_text())
    del config["bos_token"]
    for number, (change, more) in enumerate(
        [
            ({"bos_token": None, "eos_token": "class"}, {}),
            ({"bos_token": {"content": "def", "__type": "AddedToken"}, "eos_token": "class"}, {}),
            ({"tokenizer_class": "LlamaTokenizer"}, {}),  # whose default is <s>
            ({"bos_token": "class", "eos_token": "def"}, {"bos_token": {"content": "return"}}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(demo_checkpoint / "tokenizer.json", folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        if more:
            (folder / "special_tokens_map.json").write_text(json.dumps(more))
        wanted = AutoTokenizer.from_pretrained(folder).special_tokens_map
        found = special_tokens(folder, frozenset({"bos_token", "eos_token"}))
        assert {k: found.get(k) for k in ("bos_token", "eos_token")} == {
            k: wanted.get(k) for k in ("bos_token", "eos_token")
        }
