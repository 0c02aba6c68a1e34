"""``quantwright env``: environments of the engines whose packages do not go with ours."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from quantize.engines.isolated.environment import check_gpu, check_possible, installed, needed
from quantize.engines.isolated.install import found, problems_of, uninstall
from quantize.engines.isolated.install import install as do_install
from quantize.engines.isolated.known import ENGINES, isolated_engine
from quantize.errors import StepFailed, Unsupported
from quantize.methods.registry import method
from quantize.recipe import Recipe
from quantize.terminal import console, emit_json, say
from quantize.units import spell_size


def offer_engines(recipes: Sequence[Recipe], yes: bool) -> None:
    """Install what ``recipes`` need: ``yes``, or after asking, where a person is at the terminal. Errors:
    Unsupported where nobody says yes; as ``install``."""
    wanted = {name: recipe for recipe in recipes if (name := method(recipe.method).environment(recipe))}
    for name, recipe in wanted.items():
        engine = isolated_engine(name)
        check_gpu(engine, recipe.short)
        if installed(engine):
            continue
        check_possible(engine)
        person = sys.stdin.isatty() and sys.stderr.isatty()
        asked = f"{recipe.short} needs {name}: install its {len(engine.pins)} packages in the user's cache?"
        if not yes and not (person and click.confirm(asked, default=True, err=True)):
            needed(engine, recipe.short)
        do_install(engine)


JSON_HELP = "last line of stdout is one JSON document"


@click.group()
def env() -> None:
    """Environments of engines whose packages do not go with ours: made in the user's cache from locked
    versions, with the torch at hand."""


@env.command("list")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def list_(as_json: bool) -> None:
    """List the engines, and which are installed."""
    from rich.table import Table

    table = Table("engine", "version", "here", "size", "what it makes", box=None, pad_edge=False)
    document = [_row(name) for name in ENGINES]
    for row in document:
        size = spell_size(row["size_bytes"]) if row["size_bytes"] else ""
        table.add_row(row["engine"], row["version"], row["here"], size, row["summary"])
    console().print(table)
    if as_json:
        emit_json(document)


def _row(name: str) -> dict[str, Any]:
    engine = isolated_engine(name)
    there = found(engine)
    current = next((each for each in there if each.current and each.finished), None)
    try:
        check_possible(engine)
        here = "yes" if current else f"no: {engine.install_command}"
    except Unsupported as error:
        here = f"no: {error}"
    return {
        "engine": name,
        "version": engine.label,
        "summary": engine.summary,
        "installed": current is not None,
        "here": here,
        "folder": str(current.folder) if current else None,
        "size_bytes": sum(each.size_bytes for each in there),
        "others": [str(each.folder) for each in there if each is not current],
        "lock": engine.sha256,
    }


@env.command()
@click.argument("name")
@click.option(
    "--installer",
    type=click.Choice(["auto", "uv", "pip"]),
    default="auto",
    show_default=True,
    help="auto: uv where it is on the path, else pip",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def install(name: str, installer: str, as_json: bool) -> None:
    """Install the engine NAME; nothing is done where it is there already."""
    made = do_install(isolated_engine(name), installer)
    say(f"{name}: {made.engine.label}, in {made.folder}")
    if as_json:
        emit_json(
            {"engine": name, "folder": str(made.folder), "versions": made.versions, "torch": made.torch}
        )


@env.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def remove(name: str, as_json: bool) -> None:
    """Remove the engine NAME, its environments for other versions of Python too."""
    gone = uninstall(isolated_engine(name))
    say(f"{name}: removed" if gone else f"{name}: was not installed")
    if as_json:
        emit_json({"engine": name, "removed": [str(folder) for folder in gone]})


@env.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def verify(name: str, as_json: bool) -> None:
    """Check that the environment of NAME holds what its lock says, each file as it was installed."""
    engine = isolated_engine(name)
    current = next((each for each in found(engine) if each.current and each.finished), None)
    if current is None:
        raise Unsupported(f"{name}: not installed here; install with: {engine.install_command}")
    problems = list(problems_of(engine, current.folder))
    if as_json:
        emit_json({"engine": name, "folder": str(current.folder), "problems": problems})
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise StepFailed(
            f"{name}: {problems[0]}{more}; remove and install it again: quantwright env remove {name}"
        )
    say(f"{name}: {len(engine.pins)} packages as locked")
