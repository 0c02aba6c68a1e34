"""What making an artifact again has shown: where it differs, in words that name the place."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from quantize.terminal import printable

#: ``about``: names, authors, versions, which no program computes with
Group = Literal["settings", "tokenizer", "about"]
VALUE = 100


@dataclass(frozen=True)
class TensorDifference:
    """``differing`` of ``of`` blocks (or values) of ``kind`` are not those that the source gives;
    ``largest``: of the differences between their values. ``why``: where it is not the values that differ."""

    name: str
    kind: str
    differing: int = 0
    of: int = 0
    unit: str = "blocks"
    largest: float | None = None
    why: str = ""

    def __str__(self) -> str:
        name = printable(self.name, 200)
        if self.why:
            return f"{name}: {printable(self.why, 300)}"
        worst = "" if self.largest is None else f", largest error {self.largest:.4g}"
        return f"{name}: {self.differing:,} of {self.of:,} {self.unit} differ ({self.kind}{worst})"

    def document(self) -> dict[str, Any]:
        finite = self.largest is not None and math.isfinite(self.largest)
        return {
            "tensor": printable(self.name, 200), "type": self.kind, "differing": self.differing,
            "of": self.of, "unit": self.unit, "largest": self.largest if finite else None,
            "why": printable(self.why, 300),
        }  # fmt: skip


@dataclass(frozen=True)
class MetadataDifference:
    """``found`` in the artifact, and what the source gives; None: nothing. ``file``: where that is not the
    GGUF file itself."""

    key: str
    found: str | None
    derived: str | None
    group: Group
    file: str = ""

    def __str__(self) -> str:
        place = f"{printable(self.file, VALUE)}: " if self.file else ""
        said = [f"is {self.found}" if self.found is not None else "is missing"]
        said += [f"the source gives {self.derived}" if self.derived is not None else "the source gives none"]
        return f"{place}{printable(self.key, VALUE)} {', '.join(said)}"

    def document(self) -> dict[str, Any]:
        return {
            "key": printable(self.key, VALUE), "found": self.found, "derived": self.derived,
            "group": self.group, "file": printable(self.file, VALUE),
        }  # fmt: skip


def shown(value: Any) -> str | None:
    return None if value is None else printable(str(value)[: 2 * VALUE], VALUE)


@dataclass
class Outcome:
    """``files``: name -> sha256 of what the artifact has; ``whole``: those of which every byte was made again
    and is the same. ``recipe``: what was done to the source; ``tensors`` and ``blocks`` compared;
    ``remarks``: what may explain a difference."""

    files: dict[str, str]
    recipe: dict[str, Any]
    whole: list[str] = field(default_factory=list)
    tensors: int = 0
    blocks: int = 0
    differing: list[TensorDifference] = field(default_factory=list)
    metadata: list[MetadataDifference] = field(default_factory=list)
    files_differ: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def weights_follow(self) -> bool:
        return not self.differing and not self.files_differ

    @property
    def telling(self) -> list[MetadataDifference]:
        """What a program that opens the model computes with."""
        return [each for each in self.metadata if each.group != "about"]
