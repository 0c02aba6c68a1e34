"""What a chat template does, learnt by rendering: what it writes before, between and after messages.

Every message says a mark that the template cannot know. What stands around the marks is then the template's
own, and which of it is written when follows from four things: who spoke before, who speaks, what there is of
a system message, and whether this is the last message. A template whose text does not follow from these has
no shape, and the first place where it differs is named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quantize.chat.render import Message, TemplateRefuses, render
from quantize.chat.templates import ChatTemplate
from quantize.errors import BadInput

#: what a template that trims takes off a mark
BEFORE, AFTER = "\n\n\n\n\n\n\n\t \n", "\n \t\n\n\n\n\n\n\n"
START, END = "start", "end"
ROLES = {"u": "user", "a": "assistant", "s": "system"}
#: u, a, s: who speaks after the system message, if there is one
TURNS = ("", "u", "ua", "uau", "uaua", "uauau", "uauauau", "a", "au")
LATER = ("uasu", "us", "usu", "uas", "uausu")  # a system message that is not the first message
SYSTEM = ("none", "some", "empty")


class Said(NamedTuple):
    """Where a message's content stands. ``left``, ``right``: what is trimmed there: ``keep`` (nothing),
    ``lines`` (line feeds) or ``all`` (white space)."""

    who: str  # "system" or "turn"
    left: str
    right: str


Piece = str | Said


class Place(NamedTuple):
    """Before and at a message, or at the end: what decides what is written there."""

    previous: str  # a role, or START
    role: str  # a role, or END
    system: str  # one of SYSTEM
    last: bool


class Refused(NamedTuple):
    reason: str


Written = tuple[Piece, ...] | Refused


@dataclass(frozen=True)
class Shape:
    """``written``: place -> what the template writes there. ``lost``: what could not be learnt. ``empty``: as
    which of SYSTEM an empty system message counts. ``later``: what becomes of system messages that are not
    the first message: ``in place``, ``joined`` (to the first, after an empty line) or ``left out``."""

    written: dict[Place, Written]
    lost: tuple[str, ...] = ()
    empty: str = "empty"
    later: str = "in place"


def expected(template: ChatTemplate, messages: Sequence[Message], bos: str) -> str:
    """What a program must send for ``messages``: the template's text with its generation prompt, or the last
    answer left open, without the BOS token that the program's tokenizer adds itself.

    Errors: as ``quantize.chat.render.render``.
    """
    ends_open = bool(messages) and messages[-1]["role"] == "assistant"
    text = template.render(messages, add_generation_prompt=not ends_open, open_end=ends_open)
    return text.removeprefix(bos) if bos else text


def learn(template: ChatTemplate, bos: str) -> Shape:
    """``bos``: the token that the program's tokenizer puts before a text, else "".

    Errors: BadInput where the template takes more than it may.
    """
    seen: dict[Place, Written] = {}
    lost: list[str] = []
    refused: list[tuple[list[Place], str]] = []
    later = _later(template, bos)
    for system, turns in _probes((*TURNS, *LATER) if later == "in place" else TURNS):
        places = list(_places(system, turns))
        messages, marks = _marked(system, turns)
        try:
            text = expected(template, messages, bos)
        except TemplateRefuses as error:
            refused.append((places, error.reason))
            continue
        except BadInput:
            if not turns.endswith("a"):
                raise
            # an answer that cannot be left open
            refused.append((places, "an answer to be continued"))
            continue
        pieces = _cut(text, marks, turns)
        if isinstance(pieces, str):
            lost.append(f"{_spelled(system, turns)}: {pieces}")
            continue
        for place, found in zip(places, pieces, strict=True):
            if seen.setdefault(place, found) != found:
                lost.append(
                    f"{_spelled(system, turns)}: what is written {_where(place)} depends on more than who "
                    "speaks before and after"
                )
    for places, reason in refused:
        unknown = next((place for place in places if place not in seen), None)
        if unknown is not None:
            seen[unknown] = Refused(reason)
    seen, empty = _without_empty(seen)
    if all(isinstance(found, Refused) for found in seen.values()):
        raise BadInput(f"{template.where}: its chat template refuses every conversation")
    return Shape(seen, tuple(dict.fromkeys(lost)), empty, later)


def clock(template: ChatTemplate) -> bool:
    """Whether what the template writes depends on the time."""
    if "strftime_now" not in template.text:
        return False
    told = "{%- macro strftime_now(form) -%}another day{%- endmacro -%}" + template.text
    messages = [{"role": "user", "content": "x"}]
    try:
        texts = [
            render(each, messages, template.special, where=template.where) for each in (told, template.text)
        ]
    except BadInput:
        return True
    return texts[0] != texts[1]


def cuts_reasoning(template: ChatTemplate) -> bool:
    """Whether an earlier answer's ``<think>...</think>`` is left out."""
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "<think>\nQ7reasoning\n</think>\n\nQ7answer"},
        {"role": "user", "content": "y"},
    ]
    try:
        text = template.render(messages)
    except TemplateRefuses:
        return False
    return "Q7answer" in text and "Q7reasoning" not in text


def _later(template: ChatTemplate, bos: str) -> str:
    turns: list[Message] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    first, later, both = ({"role": "system", "content": text} for text in ("Q1", "Q2", "Q1\n\nQ2"))
    inside = [*turns[:2], later, turns[2]]

    def same(one: Sequence[Message], other: Sequence[Message]) -> bool:
        return expected(template, one, bos) == expected(template, other, bos)

    try:
        if same(inside, turns):
            return "left out"
        if same([first, *inside], [both, *turns]) and same(inside, [later, *turns]):
            return "joined"
    except BadInput:
        pass
    return "in place"


def _probes(kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    for system in SYSTEM:
        for turns in kinds:
            if turns or system != "none":
                yield system, turns


def _places(system: str, turns: str) -> Iterator[Place]:
    previous = START
    for index, turn in enumerate(turns):
        yield Place(previous, ROLES[turn], system, index == len(turns) - 1)
        previous = ROLES[turn]
    yield Place(previous, END, system, False)


def _marked(system: str, turns: str) -> tuple[list[Message], list[str]]:
    """The conversation, and its marks: the system message's (or ""), then those of the turns."""
    marks = [f"Qz{index}wV" for index in range(len(turns) + 1)]
    contents = [f"{BEFORE}{mark}{AFTER}" for mark in marks]
    messages: list[Message] = []
    if system != "none":
        messages.append({"role": "system", "content": contents[0] if system == "some" else ""})
    for turn, content in zip(turns, contents[1:], strict=True):
        messages.append({"role": ROLES[turn], "content": content})
    if turns.endswith("a"):  # left open, its end is cut off with what stands after it
        messages[-1] = {**messages[-1], "content": f"{BEFORE}{marks[-1]}"}
    return messages, [marks[0] if system == "some" else "", *marks[1:]]


def _cut(text: str, marks: Sequence[str], turns: str) -> list[tuple[Piece, ...]] | str:
    """What is written at each place; a sentence where it cannot be told."""
    system, *said = marks
    units: list[tuple[Piece, ...]] = []
    rest = text
    open_end = turns.endswith("a")
    for index, mark in enumerate(said):
        found = rest.count(mark)
        if found == 0 and turns[index] == "s":  # a system message that is left out
            units.append(())
            continue
        if found != 1:
            return f"what the {ROLES[turns[index]]} says appears {found} times, or out of order"
        before, _, rest = rest.partition(mark)
        before, left = _trimmed_left(before)
        right = "keep"
        if not (open_end and index == len(said) - 1):
            rest, right = _trimmed_right(rest)
        units.append((*_with_system(before, system), Said("turn", left, right)))
    units.append(_with_system(rest, system))
    return units


def _with_system(text: str, mark: str) -> tuple[Piece, ...]:
    if not mark or mark not in text:
        return (text,) if text else ()
    before, _, after = text.partition(mark)
    before, left = _trimmed_left(before)
    after, right = _trimmed_right(after)
    return (*((before,) if before else ()), Said("system", left, right), *_with_system(after, mark))


def _trimmed_left(before: str) -> tuple[str, str]:
    for rest, kind in ((BEFORE, "keep"), (BEFORE.lstrip("\n"), "lines")):
        if before.endswith(rest):
            return before.removesuffix(rest), kind
    return before, "all"


def _trimmed_right(after: str) -> tuple[str, str]:
    for rest, kind in ((AFTER, "keep"), (AFTER.rstrip("\n"), "lines")):
        if after.startswith(rest):
            return after.removeprefix(rest), kind
    return after, "all"


def _without_empty(seen: dict[Place, Written]) -> tuple[dict[Place, Written], str]:
    """An empty system message counts as one, where that writes the same; else as none, where that does."""
    for other in ("some", "none"):
        if all(
            _bare(seen[twin]) == found
            for place, found in seen.items()
            if place.system == "empty" and (twin := place._replace(system=other)) in seen
        ):
            return {place: found for place, found in seen.items() if place.system != "empty"}, other
    return seen, "empty"


def _bare(written: Written) -> Written:
    """With nothing where the system message stands."""
    if isinstance(written, Refused):
        return written
    pieces: list[Piece] = []
    for piece in written:
        if isinstance(piece, Said) and piece.who == "system":
            continue
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces)


def _spelled(system: str, turns: str) -> str:
    who = ", ".join(ROLES[turn] for turn in turns)
    return ", ".join(filter(None, ("" if system == "none" else f"system ({system})", who)))


def _where(place: Place) -> str:
    if place.role == END:
        return f"at the end, after {place.previous}"
    return f"between {place.previous} and {place.role}"
