"""Renders chat templates for the process that started it (``quantize.chat.render``): a line of JSON in, a
line of JSON out.

A template is an untrusted program. It runs in Jinja's sandbox, and since the sandbox bounds neither time nor
memory (one ``"a" * 10 ** 12`` needs no loop), in this process: more memory than ``MEMORY_BYTES`` or output
than ``OUTPUT_CHARACTERS`` is an error, and after ``SECONDS`` of processor time for one conversation the
kernel ends the process. It can write no file.

Templates get the same variables and functions as in transformers. Source:
transformers/utils/chat_template_utils.py.
"""

import contextlib
import json
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

SECONDS = 10.0
MEMORY_BYTES = 1 << 30
OUTPUT_CHARACTERS = 16 << 20


class TooMuch(Exception):
    """More output than ``OUTPUT_CHARACTERS``."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what a model said; only the text between the marks counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Names(jinja2.utils.Namespace):
    """``namespace(...)`` without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # so that one may be called ``self``
        given = dict(*args[1:], **values)
        for name in given:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace holds no {name!r}: names that begin with an underscore are private"
        )


class Dicts:
    """``dict`` as templates use it."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _regex_replace(text: str, pattern: str, repl: str, count: int = 0) -> str:
    return re.sub(pattern, repl, text, count=count)


@lru_cache(maxsize=64)
def _compiled_task(template: str) -> jinja2.Template:
    """A template of a task file's. Source of what it may use: lm_eval/utils.py."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["regex_replace"] = _regex_replace
    return environment.from_string(template)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": Dicts(),
        "namespace": Names,
    }  # fmt: skip
    return environment.from_string(template)


def rendered(template: str, variables: dict[str, Any], task: bool = False) -> str:
    parts, size = [], 0
    for part in (_compiled_task if task else _compiled)(template).generate(**variables):
        size += len(part)
        if size > OUTPUT_CHARACTERS:
            raise TooMuch
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """``{"text"}``, or ``{"error": kind, "message"}``: kind ``template`` where Jinja or the template itself
    says no."""
    with _processor_time(request["seconds"]):
        try:
            return {"text": rendered(request["template"], request["variables"], request.get("task", False))}
        except jinja2.exceptions.TemplateError as error:
            return {"error": "template", "message": str(error.message or type(error).__name__)[:2000]}
        except TooMuch:
            return {
                "error": "limit",
                "message": f"it writes more than {OUTPUT_CHARACTERS:,} characters for one item",
            }
        except (MemoryError, RecursionError, OverflowError) as error:
            return {
                "error": "limit",
                "message": f"it needs more memory or depth than allowed ({type(error).__name__})",
            }
        except Exception as error:  # of an expression in the template: any kind
            return {"error": "other", "message": f"{type(error).__name__}: {error}"[:2000]}


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """SIGPROF's default action, the end of the process, after so much time of the processor."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(ValueError, OSError):  # a system without it, or one that allows less already
            resource.setrlimit(limit, (value, value))
    for line in sys.stdin.buffer:
        reply = json.dumps(answer(json.loads(line)))
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
