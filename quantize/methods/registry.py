"""Which methods there are. One line a method; nothing is imported until a method is used.

Other packages add methods through the entry-point group ``quantwright.methods``.
"""

from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from quantize.errors import BadInput

if TYPE_CHECKING:
    from quantize.methods.base import Method
    from quantize.recipe import Recipe

METHODS: dict[str, str] = {
    "dense": "quantize.methods.dense:Dense",
    "gguf": "quantize.methods.gguf:Gguf",
    "gptq": "quantize.methods.gptq:Gptq",
    "awq": "quantize.methods.awq:Awq",
    "quanto": "quantize.methods.quanto:Quanto",
    "bnb": "quantize.methods.bitsandbytes:BitsAndBytes",
}
METHODS |= {point.name: point.value for point in metadata.entry_points(group="quantwright.methods")}


@cache
def method(name: str) -> "Method":
    """The method called ``name``. Errors: BadInput where there is none."""
    if name not in METHODS:
        raise BadInput(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    instance: Method = getattr(import_module(module), attribute)()
    return instance


def recipe_class(name: str) -> "type[Recipe]":
    return method(name).recipe_class


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every short spelling -> the parameters it stands for, ``method`` included."""
    return {short: {"method": name, **params} for name in METHODS for short, params in method(name).presets.items()}
