"""Options of ``quantwright convert`` that set parameters of GGUF recipes."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from quantize.errors import BadInput
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.recipe import Recipe
from quantize.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])
#: name of the option's value -> the option; all but the last are parameters of the recipe
OPTIONS = {
    "tensor_types": "--tensor-type",
    "via": "--via",
    "imatrix": "--imatrix",
    "split_max_bytes": "--split-max-size",
    "pre_tokenizer": "--pre-tokenizer",
    "allow_tokenizer_mismatch": "--allow-tokenizer-mismatch",
}


def gguf_options(command: F) -> F:
    """Add them; the command gets those that were given as the mapping ``gguf``, names as in ``OPTIONS``."""

    @click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="REGEX=TYPE",
        help="GGUF: type of the tensors whose name matches (repeatable)",
    )
    @click.option(
        "--via", type=click.Choice(["f32", "f16", "bf16"]), help="GGUF: round the weights to this type first"
    )
    @click.option(
        "--imatrix",
        type=click.Path(path_type=Path),
        help="GGUF: importance matrix (`quantwright imatrix` makes one), or `auto`: computed from the "
        "calibration text",
    )
    @click.option(
        "--split-max-size",
        "split_max_bytes",
        metavar="SIZE",
        help="GGUF: split into files of at most this much, e.g. 4GB",
    )
    @click.option(
        "--pre-tokenizer", help="GGUF: llama.cpp's name of the pre-tokenizer, if it is not recognised"
    )
    @click.option(
        "--allow-tokenizer-mismatch",
        is_flag=True,
        help="GGUF: note texts that tokenize differently instead of failing",
    )
    @functools.wraps(command)
    def wrapper(split_max_bytes: str | None, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given["split_max_bytes"] = parse_size(split_max_bytes) if split_max_bytes else None
        return command(gguf={name: value for name, value in given.items() if value}, **kwargs)

    return wrapper  # type: ignore[return-value]


def with_options(recipes: Sequence[Recipe], gguf: dict[str, Any]) -> list[Recipe]:
    """The recipes, those of GGUF with the parameters given. Errors: BadInput where there is none of GGUF, or
    a value is wrong."""
    if gguf and not any(isinstance(recipe, GgufRecipe) for recipe in recipes):
        raise BadInput(f"{OPTIONS[next(iter(gguf))]}: is only for GGUF recipes; drop it or add a gguf recipe")
    changes = {name: value for name, value in gguf.items() if name != "allow_tokenizer_mismatch"}
    if "imatrix" in changes:
        changes |= {"imatrix": str(changes["imatrix"]), "imatrix_sha256": None}
    return [
        recipe.changed(changes) if isinstance(recipe, GgufRecipe) and changes else recipe
        for recipe in recipes
    ]
