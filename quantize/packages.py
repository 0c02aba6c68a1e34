"""The command that installs what is missing: by the names of the packages themselves, at the versions seen
working together.

Never by this project's own name: whoever may have registered that name on an index is not known here.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

#: Versions seen working together; it is part of the installed package, so that a hint can name it.
CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def install_command(extra: str, packages: Sequence[str] = ()) -> str:
    """``pip install -c .../constraints.txt PACKAGES`` for everything that ``extra`` of pyproject.toml names,
    and ``packages``."""
    wanted = sorted({*packages, *_requirements(extra)} if extra else set(packages))
    path = os.path.relpath(CONSTRAINTS)
    path = str(CONSTRAINTS) if path.startswith("..") else path
    return " ".join(["pip install -c", shlex.quote(path), *map(shlex.quote, wanted)])


def _requirements(extra: str) -> set[str]:
    from packaging.requirements import Requirement

    found = set()
    for text in metadata.requires("quantwright") or ():
        wanted = Requirement(text)
        if (
            wanted.marker
            and not wanted.marker.evaluate({"extra": ""})
            and wanted.marker.evaluate({"extra": extra})
        ):
            extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
            found.add(f"{wanted.name}{extras}{wanted.specifier}")
    return found


@dataclass(frozen=True)
class Probe:
    """What of some packages is installed: ``missing`` of those that are needed, ``versions`` of all that are
    there."""

    missing: tuple[str, ...]
    versions: Mapping[str, str]


def probe(needed: Sequence[tuple[str, str]], others: Sequence[str] = ()) -> Probe:
    """``needed``: (distribution, module to look for); ``others``: distributions whose versions are asked too.
    Imports none of them."""
    missing = tuple(distribution for distribution, module in needed if not importable(module))
    asked = dict.fromkeys([*(distribution for distribution, _ in needed), *others])
    versions = {name: found for name in asked if (found := version(name)) is not None}
    return Probe(missing, versions)


def version(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Imports nothing of it but the packages that hold it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False
