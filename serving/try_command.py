"""``quantwright try``."""

from pathlib import Path

import click

from quantize.commands.options import run_options
from quantize.files import typed_path
from quantize.recipe import RunOptions
from quantize.terminal import emit_json, log, say
from serving.command import PORT
from serving.page.environment import environment
from serving.page.session import try_


@click.command("try")
@click.argument("artifacts", nargs=-1, metavar="ARTIFACT...", type=click.Path(path_type=Path))
@click.option("--port", type=PORT, default=7860, show_default=True)
@click.option(
    "--install", is_flag=True, help="install Gradio into an environment of its own where it is missing"
)
@run_options
def command(artifacts: tuple[Path, ...], port: int, install: bool, as_json: bool, run: RunOptions) -> int:
    """Chat with several ARTIFACTs side by side, on a page of this machine alone.

    Each is opened in a process of its own and answers as its words come, with tokens per second, time to the
    first token and memory. Nothing leaves the machine. A checkpoint's folder or a GGUF file will do too.
    """
    if not artifacts:
        if not install:
            raise click.UsageError("Missing argument 'ARTIFACT...'.")
        environment(True)
        return 0

    def ready(url: str) -> None:
        if as_json:
            emit_json({"url": url, "artifacts": [str(path) for path in artifacts]})
        else:
            say(f"ready: {url}")

    return try_(
        [typed_path(path) for path in artifacts], run, port=port, install=install, say=log, ready=ready
    )
