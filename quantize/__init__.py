"""A checkpoint goes in, a verified artifact comes out.

from quantize import Artifact, Checkpoint, convert
artifact = convert("org/name", "gguf-q4_k_m", "out")
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_LAZY = {
    "convert": "quantize.conversion",
    "Checkpoint": "quantize.checkpoint.checkpoint",
    "Artifact": "quantize.artifact.artifact",
    "RunOptions": "quantize.recipe",
    "CalibrationOptions": "quantize.recipe",
    "Recipe": "quantize.recipe",
    "parse_recipe": "quantize.recipe",
}
__all__ = ["Artifact", "CalibrationOptions", "Checkpoint", "Recipe", "RunOptions", "convert", "parse_recipe"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module quantize.conversion sets it as an attribute here, where the function of that name is meant to be.
        super().__setattr__(name, getattr(value, name) if name == "convert" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
