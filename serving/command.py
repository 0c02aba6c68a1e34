"""``quantwright export``."""

from pathlib import Path

import click

from quantize.files import typed_path
from quantize.terminal import emit_json, log, say
from serving.export import TARGETS, export

PORT = click.IntRange(1, 65535)


@click.command("export")
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option("--for", "target", required=True, type=click.Choice(list(TARGETS)), help="the program")
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="folder to write")
@click.option("--name", default="", help="name to serve it as  [default: source and recipe]")
@click.option("--port", type=PORT, help="port of the server  [default: the program's own]")
@click.option("--context", type=click.IntRange(min=1), help="tokens of context  [default: the model's own]")
@click.option(
    "--binary", type=click.Path(path_type=Path), help="llamafile program to put the model into (llamafile)"
)
@click.option("--lossy", is_flag=True, help="accept a template that cannot say all that the model's own does")
@click.option("--force", is_flag=True, help="replace the export at -o")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def command(
    artifact: Path,
    target: str,
    out: Path,
    name: str,
    port: int | None,
    context: int | None,
    binary: Path | None,
    lossy: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Write what another program needs to run ARTIFACT: a Modelfile, a command, a compose file, a script.

    The artifact's files are compared with its manifest first, and linked, not copied, where the program needs
    them. Where a program cannot do what the model's own chat template does, the closest is written, each
    difference is named, and the exit code is 1 unless --lossy is given.
    """
    made = export(
        typed_path(artifact),
        target,
        typed_path(out),
        name=name,
        port=port,
        context=context,
        binary=typed_path(binary) if binary else None,
        force=force,
        say=log,
    )
    for line in made.lost:
        log(f"lost: {line}")
    for line in made.notes:
        log(f"note: {line}")
    if made.lost and not lossy:
        log(f"{out}: holds the closest that {target} can do; give --lossy to accept it")
    files = sorted([*made.texts, *made.links, *made.built])
    if as_json:
        emit_json(
            {"folder": str(out), "for": target, "files": files, "start": made.start, "lost": made.lost,
             "notes": made.notes}
        )  # fmt: skip
    else:
        say(f"{out}: {', '.join(files)}")
        say(f"then: {made.start}")
    return 1 if made.lost and not lossy else 0
