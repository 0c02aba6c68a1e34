"""``quantwright serve``."""

from pathlib import Path

import click

from quantize.files import typed_path
from quantize.terminal import emit_json, log, say
from serving.command import PORT
from serving.serve import LOOPBACK, serve
from serving.servers import SERVERS


@click.command("serve")
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="[-- SERVER'S OWN ARGUMENTS]")
@click.option(
    "--with", "wanted", type=click.Choice([server.name for server in SERVERS]), help="which server"
    "  [default: the first that is here]",
)  # fmt: skip
@click.option("--port", type=PORT, default=8080, show_default=True)
@click.option(
    "--host", default=LOOPBACK, show_default=True, help="address to listen on; anyone there may ask"
)
@click.option("--name", default="", help="name to serve it as  [default: source and recipe]")
@click.option("--context", type=click.IntRange(min=1), help="tokens of context  [default: the server's own]")
@click.option("--json", "as_json", is_flag=True, help="one JSON line on stdout once it answers")
def command(
    artifact: Path,
    more: tuple[str, ...],
    wanted: str | None,
    port: int,
    host: str,
    name: str,
    context: int | None,
    as_json: bool,
) -> int:
    """Start ARTIFACT's own server, which speaks OpenAI's API, and end it with this command.

    llama-server, else llama-cpp-python's server, for GGUF; vLLM, else transformers serve, for the rest. Its
    output is passed through; --name is not known to transformers serve.
    """

    def ready(url: str) -> None:
        if as_json:
            emit_json({"url": url, "artifact": str(artifact)})
        else:
            say(f"ready: {url}")

    return serve(
        typed_path(artifact),
        wanted=wanted or "",
        host=host,
        port=port,
        name=name,
        context=context,
        more=more,
        say=log,
        ready=ready,
    )
