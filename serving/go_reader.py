"""As much of Go's text/template as ``serving.go_template`` writes, to see what a template makes of a
conversation where Go is not at hand.

Source: https://pkg.go.dev/text/template. Texts are bytes, as ``len`` and ``slice`` count them there.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantize.errors import StepFailed

_ACTION = re.compile(
    r"\{\{(?P<left>- )?(?P<body>(?:[^\"}]|\"(?:[^\"\\]|\\.)*\"|\}(?!\}))*?)(?P<right> -)?\}\}"
)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\(|\)|\$?[\w.]+|\$|\.[\w.]*|:=|=|,)')
_ESCAPE = re.compile(r'\\(u[0-9a-f]{4}|U[0-9a-f]{8}|["\\nrt])')
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


class GoError(StepFailed):
    """The template, executed, ends in an error."""


@dataclass
class Node:
    """``kind``: text, show, set, if, range, template. ``branches`` of an ``if``: (condition, body)."""

    kind: str
    value: Any = None
    body: list["Node"] = field(default_factory=list)
    branches: list[tuple[list[str] | None, list["Node"]]] = field(default_factory=list)


class GoTemplate:
    """Errors: StepFailed where ``source`` is not of the subset."""

    def __init__(self, source: str):
        self._defined: dict[str, list[Node]] = {}
        self._items = _lex(source)
        self._at = 0
        self._root = self._parse()
        if self._at < len(self._items):
            raise StepFailed("a Go template ends before its text does")

    def execute(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Errors: GoError."""
        said = [{"Role": m["role"].encode(), "Content": str(m["content"]).encode()} for m in messages]
        system = b"\n\n".join(each["Content"] for each in said if each["Role"] == b"system")
        data = {"Messages": said, "System": system}
        out: list[bytes] = []
        self._run(self._root, data, {"$": data}, out)
        return b"".join(out).decode()

    def _parse(self) -> list[Node]:
        """Nodes up to an ``else`` or ``end``, which is left for the caller."""
        nodes: list[Node] = []
        while self._at < len(self._items):
            text, words = self._items[self._at]
            if words is None:
                nodes.append(Node("text", text.encode()))
                self._at += 1
                continue
            head = words[0]
            if head in ("else", "end"):
                break
            self._at += 1
            if head == "define":
                self._defined[_string(words[1]).decode()] = self._parse()
                self._end()
            elif head == "range":
                nodes.append(Node("range", words[1:], self._parse()))
                self._end()
            elif head == "if":
                nodes.append(self._if(words))
            elif head == "template":
                nodes.append(Node("template", words[1:]))
            elif len(words) > 1 and words[1] in (":=", "="):
                nodes.append(Node("set", words))
            else:
                nodes.append(Node("show", words))
        return nodes

    def _if(self, words: list[str]) -> Node:
        node = Node("if", branches=[(words[1:], self._parse())])
        while self._at < len(self._items) and (here := self._items[self._at][1] or [""])[0] == "else":
            self._at += 1
            node.branches.append((here[2:] or None, self._parse()))
        self._end()
        return node

    def _end(self) -> None:
        if self._at >= len(self._items) or self._items[self._at][1] != ["end"]:
            raise StepFailed("a Go template lacks an end")
        self._at += 1

    def _run(self, nodes: Sequence[Node], dot: Any, names: dict[str, Any], out: list[bytes]) -> None:
        for node in nodes:
            if node.kind == "text":
                out.append(node.value)
            elif node.kind == "show":
                out.append(_evaluate(node.value, dot, names))
            elif node.kind == "set":
                names[node.value[0]] = _evaluate(node.value[2:], dot, names)
            elif node.kind == "template":
                given = _evaluate(node.value[1:], dot, names)
                self._run(self._defined[_string(node.value[0]).decode()], given, {"$": given}, out)
            elif node.kind == "range":
                declared, over = (
                    (node.value[:3:2], node.value[4:]) if ":=" in node.value else ([], node.value)
                )
                for number, item in enumerate(_evaluate(over, dot, names)):
                    names |= dict(zip(declared, (number, item), strict=False))
                    self._run(node.body, item, names, out)
            else:
                for condition, body in node.branches:
                    if condition is None or _evaluate(condition, dot, names):
                        self._run(body, dot, names, out)
                        break


def _lex(source: str) -> list[tuple[str, list[str] | None]]:
    items: list[tuple[str, list[str] | None]] = []
    at, trim = 0, False
    for found in _ACTION.finditer(source):
        text = source[at : found.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        text = text.rstrip(" \t\r\n") if found["left"] else text
        if text:
            items.append((text, None))
        items.append(("", _words(found["body"].strip())))
        at, trim = found.end(), bool(found["right"])
    if rest := source[at:].lstrip(" \t\r\n") if trim else source[at:]:
        items.append((rest, None))
    return items


def _words(body: str) -> list[str]:
    words, at = [], 0
    while at < len(body):
        found = _TOKEN.match(body, at)
        if not found:
            raise StepFailed(f"a Go template holds {body!r}, which is not of the subset")
        words.append(found[1])
        at = found.end()
    return words


def _string(word: str) -> bytes:
    def plain(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape[1:], 16)) if escape[0] in "uU" else _PLAIN[escape]

    return _ESCAPE.sub(plain, word[1:-1]).encode()


def _evaluate(words: Sequence[str], dot: Any, names: Mapping[str, Any]) -> Any:
    value, at = _call(words, 0, dot, names)
    if at != len(words):
        raise StepFailed(f"a Go template holds {' '.join(words)!r}, which is not of the subset")
    return value


def _call(words: Sequence[str], at: int, dot: Any, names: Mapping[str, Any]) -> tuple[Any, int]:
    """A function with its operands, or one operand, up to a closing bracket or the end."""
    name = words[at]
    if name in ("and", "or"):  # what decides ends the evaluation
        value, at = _operand(words, at + 1, dot, names)
        while at < len(words) and words[at] != ")":
            if bool(value) == (name == "or"):
                at = _skipped(words, at)
            else:
                value, at = _operand(words, at, dot, names)
        return value, at
    if name not in _FUNCTIONS:
        return _operand(words, at, dot, names)
    operands: list[Any] = []
    at += 1
    while at < len(words) and words[at] != ")":
        value, at = _operand(words, at, dot, names)
        operands.append(value)
    return _FUNCTIONS[name](*operands), at


def _operand(words: Sequence[str], at: int, dot: Any, names: Mapping[str, Any]) -> tuple[Any, int]:
    word = words[at]
    if word == "(":
        value, at = _call(words, at + 1, dot, names)
        return value, at + 1
    if word.startswith('"'):
        return _string(word), at + 1
    if word.isdigit():
        return int(word), at + 1
    name, *fields = word.split(".")
    value = names[name] if name else dot
    for each in fields:
        value = value[each] if each else value
    return value, at + 1


def _skipped(words: Sequence[str], at: int) -> int:
    """After the operand that begins at ``at``."""
    depth = 0
    while True:
        depth += (words[at] == "(") - (words[at] == ")")
        at += 1
        if depth == 0:
            return at


def _slice(value: Any, begin: int = 0, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not 0 <= begin <= end <= len(value):
        raise GoError("error calling slice: index out of range")
    return value[begin:end]


def _index(value: Any, key: Any) -> Any:
    if isinstance(key, bytes):
        raise GoError(f"{key.decode()}: error calling index: cannot index slice/array with type string")
    return value[key]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda value, *others: value in others,
    "ne": lambda value, other: value != other,
    "ge": lambda value, other: value >= other,
    "not": lambda value: not value,
    "len": len,
    "slice": _slice,
    "index": _index,
}
