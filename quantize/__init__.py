"""A checkpoint goes in, a verified artifact comes out.

from quantize import Artifact, Checkpoint, convert
artifact = convert("org/name", "gguf-q4_k_m", "out")
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "convert": "quantize.conversion",
    "Checkpoint": "quantize.checkpoint.checkpoint",
    "open_checkpoint": "quantize.sources.opening",
    "Artifact": "quantize.artifact.artifact",
    "RunOptions": "quantize.recipe",
    "CalibrationOptions": "quantize.recipe",
    "Recipe": "quantize.recipe",
    "parse_recipe": "quantize.methods.registry",
}
__all__ = [
    "Artifact",
    "CalibrationOptions",
    "Checkpoint",
    "Recipe",
    "RunOptions",
    "convert",
    "open_checkpoint",
    "parse_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
