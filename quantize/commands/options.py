"""Options of commands: those that an options object's fields become, and those that say how to run."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from quantize.errors import BadInput
from quantize.options import Options, flag_of, plain_type, spelled
from quantize.recipe import RunOptions
from quantize.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])


class Commas(click.ParamType):
    """Values separated by commas, each ``of`` a type: text or a whole number."""

    name = "text"

    def __init__(self, of: type):
        self.of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        flag = param.opts[0] if param else ""
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            raise BadInput(f"{flag} {value!r}: expected at least one name")
        try:
            return [self.of(part) for part in parts]
        except ValueError:
            raise BadInput(
                f"{flag} {value!r}: expected whole numbers separated by commas, e.g. 1,512"
            ) from None


def field_options(model: type[Options], first: Sequence[str] = ()) -> Callable[[F], F]:
    """Add an option for every field of ``model``, in their order, but ``first`` before the others. The
    command gets one object of it as ``options``."""
    names = sorted(model.model_fields, key=lambda name: name not in first)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            given = {name: value for name in names if (value := values.pop(name)) is not None}
            return command(options=model.of(**given), **values)

        for name in reversed(names):
            wrapper = _option(name, model.model_fields[name])(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[F], F]:
    flag, said, kind = flag_of(name, field), spelled(field), plain_type(field.annotation)
    shown: Any = field.default if field.default not in (None, []) else said.default
    settings: dict[str, Any] = {"help": field.description, "metavar": said.metavar or None}
    if kind is bool:
        flags = f"{flag}/{flag.replace('--', '--no-', 1)}" if shown else flag
        return click.option(flags, name, is_flag=True, default=shown, show_default=shown, **settings)
    if shown is not None:
        text = ",".join(map(str, shown)) if isinstance(shown, list) else shown
        settings |= {"default": text, "show_default": True}
    return click.option(flag, name, type=_kind(kind, field), **settings)


def _kind(kind: Any, field: FieldInfo) -> click.ParamType:
    """A greatest value is left to the model: the help shows what a person has to know."""
    if spelled(field).path:
        file = spelled(field).path == "file"
        return click.Path(path_type=Path, dir_okay=not file, file_okay=file)
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    if get_origin(kind) is list:
        return Commas(int if plain_type(get_args(kind)[0]) is int else str)
    if kind is int:
        return click.IntRange(min=next((each.ge for each in field.metadata if hasattr(each, "ge")), None))
    return click.STRING


def run_options(command: F) -> F:
    """Add --device, --dtype, --threads, --memory and --trust-remote-code; the command gets one RunOptions as
    ``run``.

    --json is added too and arrives as ``as_json``.
    """

    @click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
    @click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
    )
    @click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads (default: all available to this process)"
    )
    @click.option("--memory", help="memory limit of a step, e.g. 8GiB")
    @click.option(
        "--trust-remote-code",
        is_flag=True,
        help="run Python code from the checkpoint (recorded in the manifest)",
    )
    @click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
    @functools.wraps(command)
    def wrapper(
        device: str,
        dtype: Any,
        threads: int | None,
        memory: str | None,
        trust_remote_code: bool,
        **kwargs: Any,
    ) -> Any:
        run = RunOptions(
            device=device,
            dtype=dtype,
            threads=threads,
            memory_bytes=parse_size(memory) if memory else None,
            trust_remote_code=trust_remote_code,
        )
        apply_threads(run)
        return command(run=run, **kwargs)

    return wrapper  # type: ignore[return-value]


def apply_threads(run: RunOptions) -> None:
    """Tell the libraries how many threads to use; must run before they are imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(run.resolved_threads))
    # GPTQModel keeps two workers for reading files, and fails where its pool has fewer.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, run.resolved_threads)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if run.resolved_threads > 1 else "false")
    if run.threads and "torch" in sys.modules:
        import torch

        torch.set_num_threads(run.threads)
