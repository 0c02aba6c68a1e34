"""Which methods there are. One line a method; nothing is imported until a method is used.

Other packages add methods through the entry-point group ``quantwright.methods``.
"""

from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from quantize.errors import BadInput, Unsupported
from quantize.formats.base import Format
from quantize.packages import install_command
from quantize.recipe import Recipe, did_you_mean, validated
from quantize.terminal import printable

if TYPE_CHECKING:
    from quantize.checkpoint.checkpoint import Checkpoint
    from quantize.methods.base import Method, Work

METHODS: dict[str, str] = {
    "dense": "quantize.methods.dense:Dense",
    "gguf": "quantize.methods.gguf:Gguf",
    "gptq": "quantize.methods.gptq:Gptq",
    "awq": "quantize.methods.awq:Awq",
    "rtn": "quantize.methods.rtn:Rtn",
    "ct": "quantize.methods.compressed_tensors:Ct",
    "quanto": "quantize.methods.quanto:Quanto",
    "bnb": "quantize.methods.bitsandbytes:BitsAndBytes",
    "torchao": "quantize.methods.torchao:TorchAo",
}
METHODS |= {point.name: point.value for point in metadata.entry_points(group="quantwright.methods")}


@cache
def method(name: str) -> "Method[Any]":
    """The method called ``name``. Errors: BadInput where there is none."""
    if name not in METHODS:
        raise BadInput(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    instance: Method[Any] = getattr(import_module(module), attribute)()
    return instance


def format_of(name: str) -> type[Format]:
    """Of what the method ``name`` makes; what all formats have in common, where it is not installed here."""
    return method(name).format if name in METHODS else Format


def stored_as(storage: str) -> "Method[Any] | None":
    """The method whose artifacts are stored so."""
    return next((found for name in METHODS if (found := method(name)).format.storage == storage), None)


def require(recipe: Recipe) -> "Method[Any]":
    """The recipe's method. Errors: Unsupported, with the command that mends it, where a package it needs is
    missing."""
    found = method(recipe.method)
    missing = found.engine.probe().missing
    if missing:
        raise Unsupported(
            f"{recipe.short}: needs {', '.join(missing)}; install with: "
            f"{install_command(found.engine.extra, missing)}"
        )
    return found


def plan(checkpoint: "Checkpoint", recipe: Recipe) -> "Work[Any]":
    """What the recipe will do to the checkpoint, from headers. Errors: Unsupported, BadInput where it cannot
    be done, or not here."""
    return require(recipe).plan(checkpoint, recipe)


def recipe_class(name: str) -> type[Recipe]:
    return method(name).recipe_class


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every short spelling -> its parameters, ``method`` included."""
    return {
        short: {"method": name, **params}
        for name in METHODS
        for short, params in recipe_class(name).presets.items()
    }


def parse_recipe(text: str | dict[str, Any] | Recipe) -> Recipe:
    """Short spelling, mapping or Recipe -> Recipe. Errors: BadInput naming the part that is wrong, with the
    nearest known."""
    if isinstance(text, Recipe):
        return text
    if isinstance(text, dict):
        method = text.get("method")
        if not isinstance(method, str) or method not in METHODS:
            what = f"recipe {printable(text, 200)}: unknown method {printable(repr(method), 100)}"
            raise BadInput(f"{what}{did_you_mean(printable(method, 100), METHODS)}")
        return validated(recipe_class(method), text, str(text))
    name, _, rest = text.strip().partition(":")
    known = presets()
    base = known.get(name.lower())
    if base is None and name.lower() in METHODS:
        base = {"method": name.lower()}
    if base is None:
        raise BadInput(
            f"unknown recipe {name!r}{did_you_mean(name.lower(), [*known, *METHODS])}; "
            "`quantwright methods` lists all"
        )
    cls = recipe_class(base["method"])
    values = dict(base)
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"recipe {text!r}: expected key=value after ':', got {pair!r}")
        values[key.strip()] = value.split(";") if ";" in value else value.strip()
    return validated(cls, values, text)


def split_recipes(text: str) -> list[str]:
    """``a,b:k=v,l=w,c`` -> [a, b:k=v,l=w, c]: a part with ``=`` but no ``:`` belongs to the recipe before
    it."""
    parts: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if "=" in part and ":" not in part and parts:
            parts[-1] += "," + part
        else:
            parts.append(part)
    if not parts:
        raise BadInput("--to: no recipe given; `quantwright methods` lists them")
    return parts
