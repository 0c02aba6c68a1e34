"""Other bits, groups or zero points for some matrices of a GPTQ recipe, in the words of GGUF's tensor types:
``REGEX=int8/g32/asym``, or ``REGEX=skip``; the first pattern that fits a name wins."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from quantize.numerics.grids import Grid

BITS = (2, 3, 4, 8)
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
SKIP = "skip"
_EXPECTED = (
    "expected REGEX=int2, int3, int4 or int8, gN (inputs to a group, g-1 for whole rows), sym or asym, "
    "joined by /, or REGEX=skip; e.g. down_proj=int8/g32"
)


@dataclass(frozen=True)
class Override:
    """``bits``, ``group_size``, ``symmetric``: None where the recipe's own holds; ``skip``: the matrix stays
    as it is."""

    pattern: str
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    skip: bool = False

    def grid(self, usual: Grid) -> Grid:
        """What becomes of ``usual``."""
        return replace(
            usual,
            bits=self.bits or usual.bits,
            group_size=self.group_size or usual.group_size,
            symmetric=usual.symmetric if self.symmetric is None else self.symmetric,
        )


def first_that_fits(overrides: Sequence[Override], name: str) -> Override | None:
    return next((each for each in overrides if re.search(each.pattern, name)), None)


def read_override(entry: str) -> Override:
    """Errors: ValueError, in words."""
    pattern, equals, said = entry.rpartition("=")
    if not equals or not pattern or not said:
        raise ValueError(f"{entry!r}: {_EXPECTED}")
    if odd := next((sign for sign in ",;:" if sign in pattern), ""):
        raise ValueError(
            f"{pattern!r}: a pattern cannot hold {odd}, which ends parts of a recipe; write . for it"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if said == SKIP:
        return Override(pattern, skip=True)
    found: dict[str, Any] = {}
    for word in said.split("/"):
        number = int(word.lstrip("intg")) if re.fullmatch(r"(int|g-?)\d{1,4}|\d", word) else None
        key: str
        value: bool | int | None
        if word in ("sym", "asym"):
            key, value = "symmetric", word == "sym"
        elif number in BITS and not word.startswith("g"):
            key, value = "bits", number
        elif number in GROUP_SIZES and word.startswith("g"):
            key, value = "group_size", number
        else:
            raise ValueError(f"{entry!r}: {word!r} is unknown: {_EXPECTED}")
        if key in found:
            raise ValueError(f"{entry!r}: says {key} twice")
        found[key] = value
    return Override(pattern, **found)


def spell_override(override: Override) -> str:
    """The one spelling of it, which ``read_override`` reads."""
    if override.skip:
        return f"{override.pattern}={SKIP}"
    words = [f"int{override.bits}"] if override.bits else []
    words += [f"g{override.group_size}"] if override.group_size else []
    words += [] if override.symmetric is None else ["sym" if override.symmetric else "asym"]
    return f"{override.pattern}={'/'.join(words)}"


def _spelled(value: Any) -> Any:
    """One entry, several, or a mapping of patterns to words or to ``{bits, group_size, sym}`` -> entries."""
    if isinstance(value, Mapping):
        value = [f"{pattern}={_words(said)}" for pattern, said in value.items()]
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        raise ValueError(_EXPECTED)
    return tuple(spell_override(read_override(str(entry))) for entry in entries)


def _words(said: Any) -> str:
    if not isinstance(said, Mapping):
        return str(said)
    if unknown := set(said) - {"bits", "group_size", "sym"}:
        raise ValueError(f"{sorted(map(str, unknown))[0]!r} is unknown: expected bits, group_size, sym")
    sym = {True: ["sym"], False: ["asym"], None: []}[said.get("sym")]
    bits = [f"int{said['bits']}"] if "bits" in said else []
    return "/".join([*bits, *([f"g{said['group_size']}"] if "group_size" in said else []), *sym])


Overrides = Annotated[tuple[str, ...], BeforeValidator(_spelled)]
