"""Conversations rendered by a chat template, as transformers' ``apply_chat_template`` does, in a separate
process.

That process renders all templates of this one (``quantize.chat.worker``); it starts with the first and ends
with its parent.
"""

import contextlib
import copy
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from quantize.chat import worker
from quantize.errors import BadInput
from quantize.process import child_command, child_environment
from quantize.terminal import SECRETS, printable

MAX_TEMPLATE_CHARACTERS = 1 << 20  # the longest published ones have some 30,000
WALL_SECONDS = 120.0  # where the machine is so busy that processor time does not pass
OPEN_END = "QUANTWRIGHT-OPEN-END "
#: names under which a message's reasoning is passed; the first is the one that most templates read
REASONING = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


class TemplateRefuses(BadInput):
    """The template itself, or Jinja, refuses these messages (``raise_exception``, a name undefined, wrong
    syntax): ``reason``."""

    reason = ""


def render(
    template: str,
    messages: Sequence[Message],
    special: Mapping[str, str],
    *,
    where: str,
    add_generation_prompt: bool = False,
    open_end: bool = False,
) -> str:
    """``messages`` as text. ``special``: ``bos_token`` and so on. ``open_end``: the last message is left to
    be continued.

    Source of what is done to messages, and of how an end is left open:
    transformers/utils/chat_template_utils.py.

    Errors, naming ``where``: TemplateRefuses; BadInput where the template takes more time, memory or output
    than it may, or does not show the message to be continued.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise BadInput(
            f"{where}: its chat template has more than "
            f"{MAX_TEMPLATE_CHARACTERS:,} characters, which is the limit"
        )
    if open_end and "content" not in template:
        raise BadInput(
            f"{where}: its chat template never reads what a message says, so the last one cannot be continued"
        )
    chat = [_given(message) for message in messages]
    ending = _mark_end(chat, where) if open_end else ""
    variables = {
        "messages": chat,
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **special,
    }
    reply = _worker.ask({"template": template, "variables": variables, "seconds": worker.SECONDS})
    if "text" in reply:
        return _cut_at_end(reply["text"], ending, where) if open_end else reply["text"]
    reason = printable(reply["message"], 400)
    if reply["error"] == "template":
        error = TemplateRefuses(f"{where}: its chat template refuses: {reason}")
        error.reason = reason
        raise error
    raise BadInput(
        f"{where}: its chat template {'was stopped' if reply['error'] == 'limit' else 'fails'}: {reason}"
    )


def render_task(template: str, item: Mapping[str, Any], *, where: str) -> str:
    """A template of a task file, filled with one item of its data, as lm-eval does it.

    Errors: BadInput, naming ``where``, where the template refuses, or takes more than it may.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise BadInput(
            f"{where}: a template of more than {MAX_TEMPLATE_CHARACTERS:,} characters, which is the limit"
        )
    try:
        request = json.dumps(
            {"template": template, "variables": item, "seconds": worker.SECONDS, "task": True}
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{where}: an item of its data is not made of texts, numbers and lists ({error})"
        ) from None
    reply = _worker.ask(json.loads(request))
    if "text" in reply:
        return reply["text"]
    raise BadInput(
        f"{where}: a template {'was stopped' if reply['error'] == 'limit' else 'fails'}: "
        f"{printable(reply['message'], 400)}"
    )


def _given(message: Message) -> dict[str, Any]:
    """Without what is None, which templates would print, and with its reasoning under the names that
    templates know."""
    found = {key: copy.deepcopy(value) for key, value in message.items() if value is not None}
    reasoning = next((found[name] for name in REASONING if name in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _mark_end(chat: list[dict[str, Any]], where: str) -> str:
    """Put a mark after what the last message says; returns that."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1]["content"] = content + OPEN_END
        return content
    for block in reversed(content or ()):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text = str(block["text"])
            block["text"] = text + OPEN_END
            return text
    raise BadInput(f"{where}: the last message is to be continued, but has no text")


def _cut_at_end(text: str, ending: str, where: str) -> str:
    mark = OPEN_END.strip()
    if ending.strip() not in text or mark not in text:
        raise BadInput(f"{where}: its chat template changes the last message, so it cannot be continued")
    begin = text.rindex(mark)
    # A template that trims what a message says has trimmed the mark's own space, and would have trimmed what
    # is before it.
    return text[:begin] if text.startswith(OPEN_END, begin) else text[:begin].rstrip()


class _Worker:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # the process may have ended since
                process = self._running()
                try:
                    assert process.stdin is not None
                    process.stdin.write(line)
                    process.stdin.flush()
                    break
                except (BrokenPipeError, OSError):
                    self._end()
            reply = self._read(process)
            if reply is not None:
                return reply
            code = self._end()
        if code == -signal.SIGPROF:
            return {"error": "limit", "message": f"it takes more than {worker.SECONDS:g} s of processor time"}
        return {"error": "limit", "message": f"the process that renders it ended with {code}"}

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid():
            environment = {name: value for name, value in child_environment().items() if name not in SECRETS}
            self._process = subprocess.Popen(
                child_command("quantize.chat.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._owner = os.getpid()
        return self._process

    def _read(self, process: "subprocess.Popen[bytes]") -> dict[str, str] | None:
        """The next line; None where the process has ended or takes too long."""
        assert process.stdout is not None
        deadline, parts = time.monotonic() + WALL_SECONDS, []
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while ready.select(max(0.0, deadline - time.monotonic())):
                part = os.read(process.stdout.fileno(), 1 << 20)
                parts.append(part)
                if part.endswith(b"\n"):
                    reply: dict[str, str] = json.loads(b"".join(parts))
                    return reply
                if not part:
                    return None
        return None

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()


_worker = _Worker()
