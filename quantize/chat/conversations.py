"""Rows of JSON, of a table or of a dataset -> the text that a model is calibrated or measured on.

A row is a text (``text``, ``content``, ``prompt`` with ``completion``) or a conversation (``messages``,
``conversations``): the latter by the model's chat template, as it will see conversations when it is served.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.chat.render import Message, TemplateRefuses
from quantize.chat.templates import ChatTemplate, folder_template
from quantize.checkpoint.templates import DEFAULT, folder_templates
from quantize.errors import BadInput

CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "prompt")
TEXTS = ("text", "content")
ANSWERS = ("completion", "response")
#: how ShareGPT and its like call who speaks
SPEAKERS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "function_response": "tool", "observation": "tool",
}  # fmt: skip
WANTED = (
    'expected {"text": ...}, {"messages": [{"role": ..., "content": ...}, ...]}, '
    '{"conversations": [{"from": ..., "value": ...}, ...]} or {"prompt": ..., "completion": ...}'
)


@dataclass(frozen=True)
class Text:
    """``read_as``: how, where that is not plain."""

    body: str
    read_as: str = ""


class _Conversations:
    """``rendered``, ``bare``: how many went through the template, and how many were reduced to their text."""

    def __init__(self, folder: Path | None):
        known = folder is not None and DEFAULT in folder_templates(folder)
        self.template: ChatTemplate | None = folder_template(folder) if folder and known else None
        self.rendered = self.bare = self.without_system = 0
        self.refused = ""

    def text(self, messages: Sequence[Message]) -> str:
        if self.template is not None:
            try:
                text = self.template.render(messages)
            except TemplateRefuses as error:
                self.refused = error.reason
                text = self._without_system(messages)
            if text:
                self.rendered += 1
                return text
        self.bare += 1
        return "\n".join(filter(None, map(_said, messages)))

    def _without_system(self, messages: Sequence[Message]) -> str:
        assert self.template is not None
        left = [message for message in messages if message["role"] != "system"]
        if not left or len(left) == len(messages):
            return ""
        try:
            text = self.template.render(left)
        except TemplateRefuses:
            return ""
        self.without_system += 1
        return text

    @property
    def read_as(self) -> str:
        parts = []
        if self.rendered:
            some = f", {self.without_system} without their system message" if self.without_system else ""
            parts.append(f"{_count(self.rendered)} rendered with the model's chat template{some}")
        if self.bare:
            why = (
                f"because the chat template refuses them: {self.refused}"
                if self.template
                else "because there is no chat template"
            )
            parts.append(f"{_count(self.bare)} reduced to their text, {why}")
        return "; ".join(parts)


def _count(number: int) -> str:
    return f"{number} conversation{'s' if number != 1 else ''}"


def text_of_rows(name: str, rows: Iterable[tuple[str, Any]], folder: Path | None, read_as: str = "") -> Text:
    """``rows`` of the file or dataset ``name``: (where it stands, row). ``folder``: the model's. Texts are
    joined by blank lines; conversations follow one another as the template ends them.

    Errors: BadInput naming the row that is neither, and what is wanted; BadInput where nothing is left.
    """
    conversations = _Conversations(folder)
    body: list[str] = []
    templated = True
    for where, row in rows:
        before = conversations.rendered
        text = _text_of(row, where, conversations)
        if not text.strip():
            continue
        follows = templated and conversations.rendered > before
        body += [text] if follows or not body else ["\n\n", text]
        templated = conversations.rendered > before
    if not body:
        raise BadInput(f"{name}: holds no text; {WANTED}")
    return Text("".join(body), "; ".join(filter(None, (read_as, conversations.read_as))))


def _text_of(row: Any, where: str, conversations: _Conversations) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping):
        for name in TEXTS:
            if isinstance(row.get(name), str):
                return str(row[name])
        answer = next((row[name] for name in ANSWERS if row.get(name)), None)
        for name in CONVERSATIONS:
            if isinstance(row.get(name), list) and row[name]:
                rest = answer if name == "prompt" and isinstance(answer, list) else []
                return conversations.text([_message(each, where) for each in (*row[name], *rest)])
        if isinstance(row.get("prompt"), str):
            return row["prompt"] + (answer if isinstance(answer, str) else "")
        if any(name in row for name in (*TEXTS, *CONVERSATIONS)):  # there, and null or empty
            return ""
    keys = (
        f"an object with {', '.join(map(str, row)) or 'nothing in it'}"
        if isinstance(row, Mapping)
        else type(row).__name__
    )
    raise BadInput(f"{where}: is {keys}; {WANTED}")


def _message(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, Mapping):
        role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        if isinstance(role, str) and (content is None or isinstance(content, (str, list))):
            others = {
                key: value for key, value in entry.items() if key not in ("from", "value", "role", "content")
            }
            return {"role": SPEAKERS.get(role, role), "content": content, **others}
    raise BadInput(f"{where}: holds a message without role and content; {WANTED}")


def _said(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(
        str(part["text"])
        for part in content or ()
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )
