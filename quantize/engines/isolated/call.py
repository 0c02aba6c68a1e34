"""Speaking to an engine in its environment: a request and a staging folder in, files and a response out.

The contract (docs/engines.md) is version ``CONTRACT``. The worker is run as

    ENVIRONMENT/bin/python -I WORKER REQUEST.json RESPONSE.json

and ends with exit code 0 once the response is written. What it prints is its log, of which the last lines
are shown where it fails.
"""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from quantize.artifact.artifact import Note
from quantize.engines.isolated.environment import Environment
from quantize.errors import BadInput, StepFailed
from quantize.files import read_json
from quantize.process import tied_command
from quantize.recipe import RunOptions
from quantize.terminal import SECRETS, printable

CONTRACT = 1
REQUEST, RESPONSE, WORDS = "request.json", "response.json", "engine.log"
#: how long an engine may neither say anything nor compute before it is taken to hang
IDLE_SECONDS = 600.0
_LOOK_SECONDS = 0.5
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Response(BaseModel):
    """What a worker says. ``error``: why it made nothing, in one line; ``versions``: of the packages that
    did the work; ``timings_s``: seconds by what was done; ``details``: whatever else the manifest should
    say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contract: int
    error: str = ""
    versions: dict[str, str] = {}
    timings_s: dict[str, float] = {}
    notes: list[Note] = []
    details: dict[str, Any] = {}


def call(
    environment: Environment,
    folder: Path,
    request: Mapping[str, Any],
    run: RunOptions,
    idle_seconds: float = IDLE_SECONDS,
) -> Response:
    """Run the engine's worker on ``request``, with ``folder`` for request, response and log.

    Errors: StepFailed, in one line, where it crashes, hangs, cannot be imported, says that it failed or
    answers nothing that can be read.
    """
    engine = environment.engine
    asked = {"contract": CONTRACT, "engine": engine.name, "threads": run.resolved_threads, **request}
    (folder / REQUEST).write_text(json.dumps(asked), encoding="utf-8")
    command = tied_command(
        str(environment.python), "-I", str(engine.worker), str(folder / REQUEST), str(folder / RESPONSE)
    )
    words = folder / WORDS
    with (
        environment.in_use(),
        open(words, "wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=engine_environment(run),
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        try:
            hung = _wait(process, words, idle_seconds)
        except BaseException:
            _kill(process)
            raise
    if hung:
        raise StepFailed(
            f"{engine.label}: neither computed nor said anything for {idle_seconds:g} s and was ended; "
            f"its last lines: {last_words(words)}"
        )
    response = _read(folder / RESPONSE, engine.label) if process.returncode == 0 else None
    if response is None:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise StepFailed(f"{engine.label}: failed ({how}); its last lines: {last_words(words)}")
    if response.error:
        raise StepFailed(f"{engine.label}: {printable(response.error, 400)}")
    return response


def engine_environment(run: RunOptions) -> dict[str, str]:
    """Nothing of ours that leads to other packages, no secret, no way to the Hub."""
    leave = {*SECRETS, "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "LD_PRELOAD"}
    kept = {name: value for name, value in os.environ.items() if name not in leave}
    threads = str(run.resolved_threads)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**kept, **offline, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "NO_COLOR": "1"}


def _wait(process: "subprocess.Popen[bytes]", words: Path, idle_seconds: float) -> bool:
    """Until it ends; whether it was ended because nothing happened any more."""
    before: tuple[int, float] = (-1, -1.0)
    since = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_LOOK_SECONDS, idle_seconds))
            return False
        now = (words.stat().st_size, computed_s(process.pid))
        if now[0] != before[0] or now[1] > before[1] + 0.01:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > idle_seconds:
            _kill(process)
            return True


def computed_s(pid: int) -> float:
    """Seconds that it and its children have computed; -1 where it is gone."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
    except psutil.Error:
        return -1.0
    return total


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _read(path: Path, label: str) -> Response:
    try:
        response = Response.model_validate(read_json(path))
    except BadInput:
        raise StepFailed(f"{label}: ended without a response") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StepFailed(f"{label}: its response cannot be read: {where}: {first['msg']}") from None
    if response.contract != CONTRACT:
        raise StepFailed(f"{label}: speaks contract {response.contract}, and this program {CONTRACT}")
    return response


def last_words(path: Path, count: int = 3, prefer: str = "") -> str:
    """The last lines of a log that say something, on one; those that begin with ``prefer`` where there are
    some."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.split("\r")[-1].strip() for line in _COLOURS.sub("", text).splitlines()]
    lines = [line for line in lines if any(c.isalnum() for c in line) and not line.startswith("$ ")]
    lines = [line.removeprefix(prefer) for line in lines if prefer and line.startswith(prefer)] or lines
    return printable(" | ".join(lines[-count:]) or "none", 600)
