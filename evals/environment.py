"""What every result records about where it was measured."""

import platform
from typing import Any

from quantize.packages import version

LIBRARIES = ("torch", "transformers", "numpy", "lm-eval")


def environment(threads: int) -> dict[str, Any]:
    """Python, machine, the libraries' versions, threads."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {name: known for name in LIBRARIES if (known := version(name))}
    return found | {"threads": threads}
