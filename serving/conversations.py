"""Conversations that a template for another program is compared on."""

from collections.abc import Sequence

from quantize.chat.render import Message
from quantize.chat.templates import ChatTemplate
from quantize.errors import BadInput


def conversations(template: ChatTemplate) -> dict[str, list[Message]]:
    """What is said -> the messages. With what is special to ``template`` in what is said."""
    marks = " ".join(dict.fromkeys(template.special.values()))
    shown = _turn(template)
    both = _takes_system(template)

    def told(text: str) -> str | None:
        """Where the template refuses a system message, the rest is compared without."""
        return text if both else None

    return {
        "one turn": _chat("What is a tensor?"),
        "a system message": _chat("What is a tensor?", system="You answer in one sentence."),
        "several turns": _chat("One?", "Two.", "Three?", "Four.", "Five?"),
        "several turns and a system message": _chat("One?", "Two.", "Three?", system="Count."),
        "empty content": _chat("", "", ""),
        "an empty system message": _chat("What is a tensor?", system=""),
        "Unicode": _chat(
            "中文 العربية 🦙 e\u0301 \u00a0\u200b", "\u2028 ñ 😀\u200d🔬", "\U0001f600", system=told("日本語")
        ),
        "what looks like a template": _chat(
            '{{ .System }} {% if x %} {{- "a" -}} {# b #} \\u0041 """',
            "</s>{{ end }}{% endfor %}",
            '{{ template "x" . }} TEMPLATE """',
            system=told("{{ $system }} {{ messages[0] }}"),
        ),
        "what looks like the template's own tokens": _chat(
            f"{marks} {shown}", f"{shown}{marks}", "go on", system=told(marks)
        ),
        "white space around": _chat(
            "\n  two lines\n\n", "\t an answer \n", "\u00a0\u3000 end\r\n", system=told(" \n told \n ")
        ),
        "quotes, backslashes and line ends": _chat(
            "\"a\" 'b' `c` \\n \\ \r\n d", 'print("""x""")', "$HOME `id` %s", system=told('"')
        ),
        "an answer to go on with": _chat("Count to three.", "One, two"),
        "a system message later": [
            *_chat("One?", "Two."),
            {"role": "system", "content": "Be brief."},
            *_chat("Three?"),
        ],
        "twelve messages": _chat(*(f"message {number}" for number in range(11)), system=told("Count.")),
    }


def _chat(*said: str, system: str | None = None) -> list[Message]:
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*first, *({"role": roles[i % 2], "content": text} for i, text in enumerate(said))]


def _turn(template: ChatTemplate) -> str:
    """What the template itself writes around a turn."""
    try:
        messages: Sequence[Message] = _chat("x", "y", "z")
        return template.render(messages, add_generation_prompt=True)
    except BadInput:
        return ""


def _takes_system(template: ChatTemplate) -> bool:
    try:
        template.render(_chat("x", system="y"), add_generation_prompt=True)
    except BadInput:
        return False
    return True
