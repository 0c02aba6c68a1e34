"""The command that installs what is missing: by the names of the packages themselves, at the versions seen
working together.

Never by this project's own name: whoever may have registered that name on an index is not known here.
"""

import os
import shlex
from collections.abc import Sequence
from importlib import metadata
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
