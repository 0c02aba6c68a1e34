"""A server started, watched until it answers, and ended with us."""

import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from quantize.artifact.of_path import require_artifact
from quantize.errors import BadInput, StepFailed
from quantize.process import CLEARING_SECONDS, child_command, child_environment
from quantize.staging import temporary_folder
from quantize.terminal import printable, shell
from serving.export import default_name
from serving.servers import choose
from serving.target import Request

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.2


def serve(
    folder: Path,
    *,
    wanted: str = "",
    host: str = LOOPBACK,
    port: int = 8080,
    name: str = "",
    context: int | None = None,
    more: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
    ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Run the artifact's server until it ends or a signal ends us; returns its exit code. What it prints goes
    where our own output goes. ``more``: arguments for the server. ``ready`` is called with its address once
    it answers.

    Errors: BadInput where the artifact does not match its manifest or the port is taken; Unsupported where
    no server for it is here; StepFailed where it cannot be started.
    """
    artifact = require_artifact(folder)
    request = Request(artifact, folder, printable(name or default_name(artifact), 200), port, context)
    server = choose(request, wanted)
    check_free(host, port)
    say(f"{folder}: comparing its files with its manifest")
    artifact.check_files()
    arguments = [*server.arguments(request, host), *more]
    url = f"http://{host}:{port}/v1"
    say(f"{server.name}: {shell(server.program, *arguments)}")
    with (
        temporary_folder("serve") as cache,
        # the artifact lies here: nothing is asked of the Hub, and no other model is listed or loaded. Without
        # a cache folder transformers' /v1/models fails.
        subprocess.Popen(
            child_command(*server.command, *arguments),
            # vLLM would otherwise report its use
            env=child_environment(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache), VLLM_NO_USAGE_STATS="1"),
        ) as process,
    ):
        try:
            _wait_until_ready(process, host, port, server.answers)
            if process.poll() is None:
                ready(url)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code:
        raise StepFailed(f"{server.name}: ended with exit code {code}; what it printed says why")
    return 0


def _wait_until_ready(process: "subprocess.Popen[bytes]", host: str, port: int, path: str) -> None:
    while process.poll() is None:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(POLL_SECONDS)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As a person would: once asked, and after a while made to."""
    for number, seconds in ((signal.SIGINT, CLEARING_SECONDS / 2), (signal.SIGTERM, CLEARING_SECONDS / 2)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()


def check_free(host: str, port: int) -> None:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        raise BadInput(f"{host}:{port}: {error.strerror or error}; choose another --port or --host") from None


def free_port() -> int:
    """One that nobody on this machine listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
