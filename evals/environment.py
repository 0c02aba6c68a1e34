"""What every result records about where it was measured."""

import platform
from importlib import metadata
from typing import Any

LIBRARIES = ("torch", "transformers", "numpy", "lm-eval")


def environment(threads: int) -> dict[str, Any]:
    """Python, machine, the libraries' versions, threads."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"threads": threads}
