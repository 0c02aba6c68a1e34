"""What leaves the program as text: one line stays one line, no foreign string moves the cursor, no secret is
shown."""

import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

MAX_CHARACTERS = 4000
SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNED = re.compile(r"(?i)([?&][\w-]*(?:token|secret|password|signature|sig|credential|api_?key)=)[^&#\s]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}")
# C0 and C1 controls, line and paragraph separators, marks that turn the direction of writing, halves of
# surrogate pairs
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def redact(text: str) -> str:
    """``text`` without tokens, passwords in addresses and signatures. Whatever is printed or written goes
    through here."""
    for name in SECRETS:
        value = os.environ.get(name, "").strip()
        if len(value) >= 8:
            text = text.replace(value, "***")
    text = _HUB_TOKEN.sub("***", _BEARER.sub(r"\1 ***", text))
    return _SIGNED.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def printable(text: object, limit: int = MAX_CHARACTERS) -> str:
    """One line of at most ``limit`` characters: line breaks become spaces, other controls their escapes;
    secrets are redacted."""
    one = redact(str(text)).replace("\r\n", " ").replace("\n", " ").replace("\r", " ").replace("\t", " ")
    one = _UNPRINTABLE.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), one
    )
    return one if len(one) <= limit else one[: limit - 1] + "…"


def shell(*words: str) -> str:
    """A command to copy, on one line whatever its words hold."""
    return " ".join(shlex.quote(printable(word)) for word in words)


def clean_lines(text: str) -> str:
    """``printable`` for text that is several lines on purpose; nothing is cut."""
    return "\n".join(printable(line, len(line) * 10 + 1) for line in text.split("\n"))


def log(message: str) -> None:
    """Progress and remarks go to stderr."""
    print(clean_lines(message), file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Results go to stdout."""
    print(clean_lines(message), flush=True)


def emit_json(document: Any) -> None:
    """The last line of stdout: one JSON document."""
    line = json.dumps(
        document, allow_nan=False, default=lambda o: str(o) if isinstance(o, Path) else o.__dict__
    )
    print(line, flush=True)


def console(stderr: bool = False, width: int = 160, markup: bool = False) -> "Console":
    """A rich Console whose every cell and line is ``clean_lines``, and where square brackets are text unless
    markup is asked for. ``width``: where the output is a file or a pipe, so that no column is cut."""
    from rich.console import Console
    from rich.segment import Segment

    class Clean(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # before widths are laid out
            return super().render_str(clean_lines(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                dirty = segment.text if not segment.control else ""
                yield Segment(clean_lines(dirty), segment.style) if _UNPRINTABLE.search(dirty) else segment

    made = Clean(stderr=stderr, markup=markup)
    return made if made.is_terminal or stderr else Clean(width=width, markup=markup)


class Redacting:
    """A stream that shows no secret, whoever writes to it: a library's warning and a traceback too."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def settle_output() -> None:
    """For the command, once, before anything is printed: secrets are redacted, what the terminal's encoding
    lacks is escaped, and libraries' log records go to the file that QUANTWRIGHT_LOG names, or nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us (`>&-`)
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Redacting(stream))
    log = os.environ.get("QUANTWRIGHT_LOG")
    if log:
        handler = logging.StreamHandler(Redacting(open(log, "a", encoding="utf-8")))  # type: ignore[arg-type]  # noqa: SIM115
        logging.basicConfig(
            level=logging.INFO, handlers=[handler], format="%(asctime)s %(name)s %(levelname)s %(message)s"
        )
    else:
        logging.disable(logging.WARNING)
