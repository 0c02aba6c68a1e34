"""What was found wrong with tensors: of each kind one line, which names the first tensor."""

from collections.abc import Iterator
from typing import Literal

from quantize.inspection.problems import Problem
from quantize.terminal import printable


class Findings:
    def __init__(self) -> None:
        self._found: dict[tuple[Literal["wrong", "note"], str], list[str]] = {}
        #: names of the tensors about which something was said
        self.about: set[str] = set()

    def add(self, what: str, name: str, why: str, level: Literal["wrong", "note"] = "wrong") -> None:
        self._found.setdefault((level, what), []).append(f"{printable(name, 200)}: {printable(why, 400)}")
        self.about.add(name)

    def problems(self) -> Iterator[Problem]:
        for (level, what), lines in self._found.items():
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            yield Problem(level, what, lines[0] + more)
