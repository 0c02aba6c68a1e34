"""The shape of a chat template, written in Go's text/template as Ollama runs it.

Ollama hands a template ``.Messages`` (``.Role``, ``.Content``), neighbours of one role joined. Go's templates
have neither string functions nor a way to say no: white space is trimmed by templates that call themselves on
what is left, and a conversation that the chat template refuses is an ``index`` that fails with the reason in
its error.
"""

import unicodedata
from collections.abc import Sequence

from quantize.terminal import printable
from serving.chat_shape import END, START, Piece, Place, Refused, Said, Shape, Written

#: what ``str.strip`` takes off, by the bytes that it has in UTF-8
_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITE = _SPACE + "\u2028\u2029\u202f\u205f\u3000"
_TRIMMED = {"all": WHITE, "lines": "\n"}
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}

Rows = Sequence[tuple[Place, Written]]


def written(shape: Shape) -> str:
    """The whole template."""
    out = _Out()
    for left, right in _modes(shape):
        _define(out, left, right)
    out.action('$system := ""')
    out.action('$given := "none"')
    out.action(f'$previous := "{START}"')
    if shape.later == "joined":  # all of them, wherever they are
        out.action("range .Messages")
        out.action('if eq .Role "system"')
        _given(out, shape, "$.System")
        out.action("end")
        out.action("end")
    out.action("range $i, $m := .Messages")
    if shape.later == "joined":
        out.action('if ne $m.Role "system"')
    else:
        out.action('if and (eq $i 0) (eq $m.Role "system")')
        _given(out, shape, "$m.Content")
        out.action("else" if shape.later == "in place" else 'else if ne $m.Role "system"')
    out.action("$last := eq (len (slice $.Messages $i)) 1")
    rows = [(place, found) for place, found in shape.written.items() if place.role != END]
    roles = list(dict.fromkeys(place.role for place, _ in rows))
    for index, role in enumerate(roles):
        out.action(f'{"else " if index else ""}if eq $m.Role "{role}"')
        _tree(out, [(place, found) for place, found in rows if place.role == role], _TESTS)
    if roles:
        out.action("else")
    _refuse(out, "a message of another role")
    if roles:
        out.action("end")
    out.action("$previous = $m.Role")
    out.action("end")
    out.action("end")
    ends = [(place, found) for place, found in shape.written.items() if place.role == END]
    _tree(out, ends, _TESTS)
    return out.text()


def _given(out: "_Out", shape: Shape, system: str) -> None:
    out.action(f"$system = {system}")
    if shape.empty == "some":
        out.action('$given = "some"')
        return
    out.action("if $system")
    out.action('$given = "some"')
    out.action("else")
    out.action(f'$given = "{shape.empty}"')
    out.action("end")


class _Out:
    """Actions stand on lines of their own where nothing but actions is around them, so that white space of
    the text stays what it is."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._after_text = False

    def action(self, body: str) -> None:
        self._parts.append(f"{{{{ {body} }}}}" if self._after_text else f"\n{{{{- {body} }}}}")
        self._after_text = False

    def show(self, body: str) -> None:
        """An action that writes something: no line of its own."""
        self._parts.append(f"{{{{ {body} }}}}")
        self._after_text = False

    def literal(self, text: str) -> None:
        if not text:
            return
        if plain(text):
            self._parts.append(text)
            self._after_text = True
        else:
            self.show(quoted(text))

    def text(self) -> str:
        return "".join(self._parts).removeprefix("\n").replace("{{- ", "{{ ", 1)


def plain(text: str) -> bool:
    """Whether ``text`` may stand in a template, and in a Modelfile's triple quotes, as it is. Source of what
    Ollama's parser drops: strconv.IsPrint, but for spaces, tabs and line feeds."""
    if any(each in text for each in ("{{", "}}", '"""')) or text.startswith(("-", "{", "}", '"')):
        return False
    if text.endswith(("{", '"')):
        return False
    return prints(text)


def prints(text: str) -> bool:
    return all(c in "\n " or unicodedata.category(c)[0] in "LMNPS" for c in text)


def quoted(text: str) -> str:
    """A Go string constant of printable ASCII."""

    def escaped(character: str) -> str:
        if character in _SHORT:
            return _SHORT[character]
        number = ord(character)
        if 0x20 <= number < 0x7F and character not in "{}":  # braces: so that no action seems to end here
            return character
        return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

    # three quotes in a row would end the Modelfile's value
    return '"' + "".join(map(escaped, text)).replace('\\"', "\\u0022") + '"'


def _modes(shape: Shape) -> list[tuple[str, str]]:
    found = [
        (piece.left, piece.right)
        for pieces in shape.written.values()
        if not isinstance(pieces, Refused)
        for piece in pieces
        if isinstance(piece, Said)
    ]
    wanted = {mode for mode in found if mode != ("keep", "keep")}
    # what trims on the left hands on to what trims on the right
    wanted |= {("keep", right) for left, right in wanted if right != "keep"}
    return sorted(wanted, key=lambda mode: (mode[0] != "keep", mode))


def _name(left: str, right: str) -> str:
    return f"trim-{left}-{right}"


def _define(out: _Out, left: str, right: str) -> None:
    side = left if left != "keep" else right
    by_size: dict[int, list[str]] = {}
    for character in _TRIMMED[side]:
        by_size.setdefault(len(character.encode()), []).append(character)
    out.action(f'define "{_name(left, right)}"')
    out.action("$n := len .")
    for index, (size, characters) in enumerate(by_size.items()):
        edge = f"slice . 0 {size}" if left != "keep" else f"slice . {_less(size)}"
        any_of = " ".join(map(quoted, characters))
        test = f"and (ge $n {size}) (eq ({edge}) {any_of})"
        out.action(f"{'else ' if index else ''}if {test}")
        rest = f"slice . {size}" if left != "keep" else f"slice . 0 {_less(size)}"
        out.action(f'template "{_name(left, right)}" ({rest})')
    out.action("else")
    if left != "keep" and right != "keep":
        out.action(f'template "{_name("keep", right)}" .')
    else:
        out.show(".")
    out.action("end")
    out.action("end")


def _less(size: int) -> str:
    """Go's templates cannot subtract: the length of a string without its first bytes can."""
    return f"(len (slice . {size}))"


def _content(out: _Out, said: Said) -> None:
    of = "$system" if said.who == "system" else "$m.Content"
    if (said.left, said.right) == ("keep", "keep"):
        out.show(of)
    else:
        out.show(f'template "{_name(said.left, said.right)}" {of}')


def _refuse(out: _Out, reason: str) -> None:
    text = printable(f"the chat template refuses this: {reason}", 300)
    out.show(f'index "" {quoted(text)}')


_TESTS = ("previous", "system", "last")


def _tree(out: _Out, rows: Rows, tests: Sequence[str]) -> None:
    """``if``s over what still tells the rows apart; what was never seen falls to the last."""
    kinds = list(dict.fromkeys(found for _, found in rows))
    if not kinds:
        _refuse(out, "a conversation without messages")
        return
    if len(kinds) == 1:
        _leaf(out, kinds[0])
        return
    test, *left = tests
    groups: dict[str | bool, list[tuple[Place, Written]]] = {}
    for place, found in rows:
        groups.setdefault(getattr(place, test), []).append((place, found))
    by_outcome: dict[tuple[tuple[tuple[str, ...], Written], ...], list[str | bool]] = {}
    for value, members in groups.items():
        outcome = tuple((_rest(place, left), found) for place, found in members)
        by_outcome.setdefault(_settled(outcome), []).append(value)
    if len(by_outcome) == 1:
        _tree(out, next(iter(groups.values())), left)
        return
    branches = list(by_outcome.values())
    for index, values in enumerate(branches):
        if index == len(branches) - 1:
            out.action("else")
        else:
            out.action(f"{'else ' if index else ''}if {_condition(test, values)}")
        _tree(out, [row for value in values for row in groups[value]], left)
    out.action("end")


def _settled(
    outcome: tuple[tuple[tuple[str, ...], Written], ...],
) -> tuple[tuple[tuple[str, ...], Written], ...]:
    """One entry where all are the same, so that groups compare equal though they saw other places."""
    kinds = {found for _, found in outcome}
    return (((), outcome[0][1]),) if len(kinds) == 1 else tuple(sorted(outcome, key=repr))


def _rest(place: Place, tests: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(getattr(place, test)) for test in tests)


def _condition(test: str, values: Sequence[str | bool]) -> str:
    if test == "last":
        return "$last" if values[0] else "not $last"
    name = {"previous": "$previous", "system": "$given"}[test]
    return f"eq {name} " + " ".join(f'"{value}"' for value in values)


def _leaf(out: _Out, found: Written) -> None:
    if isinstance(found, Refused):
        _refuse(out, found.reason)
        return
    pieces: Sequence[Piece] = found
    for piece in pieces:
        if isinstance(piece, Said):
            _content(out, piece)
        else:
            out.literal(piece)
