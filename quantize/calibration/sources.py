"""What a person names to calibrate on: one place that texts come from, or several with weights.

``wiki.txt*0.5,code*0.25,org/name:train:messages*0.25``: places separated by commas, each with a weight (1
where it has none). A place that exists as it is typed is taken as it is, commas and stars included.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import BadInput
from quantize.files import typed_path

#: documentation strings of Python's standard library
STDLIB = "stdlib"
#: samples of the model itself
OWN = "self"
#: ``self`` where the model can be sampled, else ``stdlib``
AUTO = "auto"
BUILT_IN = (STDLIB, OWN, AUTO)
WANTED = "expected PLACE or PLACE*WEIGHT,PLACE*WEIGHT, e.g. wiki.txt*0.5,code.txt*0.25,self*0.25"


@dataclass(frozen=True)
class Part:
    """``place``: a text file, a folder, a Hub dataset, ``stdlib`` or ``self``. ``weight``: its share of the
    tokens, beside the others'."""

    place: str
    weight: float = 1.0

    def path(self, base: Path | None = None) -> Path | None:
        """What lies there, seen from the folder ``base``; None where nothing does, or it is no place of
        files."""
        return None if self.place in BUILT_IN else _existing(self.place, base)

    def files(self) -> list[Path]:
        """Every file that lies there, in the order in which they are read; hidden ones are left out."""
        path = self.path()
        return [] if path is None else files_below(path)


def files_below(place: Path) -> list[Path]:
    """``place`` itself where it is a file."""
    if place.is_file():
        return [place]
    return sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    )


@dataclass(frozen=True)
class Dataset:
    """A dataset of the Hub: ``org/name``, ``org/name:config``, ``org/name:split:column`` or
    ``org/name:config:split:column``. What is empty, or not said, is the dataset's default (of splits
    ``train``, of columns those that hold texts or conversations)."""

    id: str
    config: str = ""
    split: str = ""
    column: str = ""

    @classmethod
    def parse(cls, place: str) -> "Dataset":
        """Errors: BadInput where it is none of these."""
        name, *rest = place.split(":")
        owner, slash, own = name.partition("/")
        if not (owner and slash and own) or "/" in own or len(rest) > 3:
            raise BadInput(
                f"calibration {place!r}: neither a text file nor a folder nor a Hub dataset "
                f"(org/name[:config] or org/name:split:column) nor one of {', '.join(BUILT_IN)}"
            )
        if len(rest) == 1:
            return cls(name, config=rest[0])
        return cls(name, *([""] if len(rest) == 2 else []), *rest)


def parse_sources(source: str, base: Path | None = None) -> tuple[Part, ...]:
    """The parts of ``source``; paths are relative to ``base``. Nothing is read.

    Errors: BadInput where a weight is no positive number, or a place is empty.
    """
    if source in BUILT_IN or _existing(source, base):
        return (Part(source),)
    parts = tuple(_part(piece.strip(), source, base) for piece in source.split(","))
    if AUTO in (part.place for part in parts) and len(parts) > 1:
        raise BadInput(f"calibration {source!r}: {AUTO} stands alone; use {OWN} or {STDLIB} in a mixture")
    return parts


def spell_sources(parts: tuple[Part, ...]) -> str:
    """As ``parse_sources`` reads it."""
    if len(parts) == 1:
        return parts[0].place
    return ",".join(part.place + (f"*{part.weight:g}" if part.weight != 1 else "") for part in parts)


def _part(piece: str, source: str, base: Path | None) -> Part:
    if piece in BUILT_IN or (piece and _existing(piece, base)):
        return Part(piece)
    place, star, weight = piece.rpartition("*")
    if not star:
        place, weight = piece, "1"
    if not place.strip():
        raise BadInput(f"calibration {source!r}: a place is empty; {WANTED}")
    try:
        number = float(weight)
    except ValueError:
        raise BadInput(
            f"calibration {source!r}: weight {weight.strip()!r} is not a number; {WANTED}"
        ) from None
    if not (math.isfinite(number) and number > 0):
        raise BadInput(f"calibration {source!r}: weight {weight.strip()} is not above 0; {WANTED}")
    return Part(place.strip(), number)


def _existing(place: str, base: Path | None) -> Path | None:
    if not place:
        return None
    try:
        path = typed_path(place)
        path = path if base is None else typed_path(base / path)
    except BadInput:
        if "," in place:  # several places may make a longer name than a file can have
            return None
        raise
    return path if path.exists() else None
