"""``quantwright try``: a process for each artifact, one for the page, all ended together."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import MANIFEST, read_manifest
from quantize.errors import BadInput, StepFailed
from quantize.files import inside
from quantize.process import CLEARING_SECONDS, child_command, child_environment, tied_command
from quantize.recipe import RunOptions
from quantize.staging import temporary_folder
from quantize.terminal import SECRETS, printable
from serving.page.environment import environment
from serving.serve import LOOPBACK, check_free

MAX_ARTIFACTS = 6  # beside one another on a screen
SOCKET_BYTES = 100  # that the path of a socket may take


def try_(
    artifacts: Sequence[Path],
    run: RunOptions,
    *,
    port: int,
    install: bool = False,
    say: Callable[[str], None] = lambda line: None,
    ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Serve the page until it ends or a signal ends us. ``ready`` is called with its address.

    Errors: BadInput where an artifact cannot be opened or the port is taken; Unsupported where Gradio is not
    here; StepFailed where a process ends.
    """
    if len(artifacts) > MAX_ARTIFACTS:
        raise BadInput(f"try: {len(artifacts)} artifacts, and at most {MAX_ARTIFACTS} fit on the page")
    check_free(LOOPBACK, port)
    gradio = environment(install)
    names = [name_of(folder) for folder in artifacts]
    with temporary_folder("try", run.scratch) as folder, gradio.in_use(), contextlib.ExitStack() as started:
        models = []
        for index, (artifact, name) in enumerate(zip(artifacts, names, strict=True)):
            path = folder / f"{index}.sock"
            if len(str(path).encode()) > SOCKET_BYTES:
                raise BadInput(f"{path}: too long for a socket's path; set TMPDIR to a shorter folder")
            say(f"{artifact}: opening")
            request = {"folder": str(artifact), "socket": str(path), "run": run.model_dump(mode="json")}
            started.enter_context(
                _process(child_command("serving.page.child", json.dumps(request)), str(artifact))
            )
            models.append({"name": name, "socket": str(path)})
        page = folder / "page.json"
        page.write_text(json.dumps({"models": models, "port": port}), encoding="utf-8")
        command = tied_command(str(gradio.python), "-I", str(gradio.engine.worker), str(page))
        process, said = started.enter_context(
            _process(command, "the page", HOME=str(folder), TMPDIR=str(folder))
        )
        ready(said["url"])
        code = process.wait()
    raise StepFailed(f"the page's process ended with {code}; what it printed says why")


def name_of(folder: Path) -> str:
    """The recipe, as the manifest says, after the folder's name."""
    if not folder.exists():
        raise BadInput(f"{folder}: no such folder or file; give an artifact, a checkpoint or a GGUF file")
    path = inside(folder, MANIFEST) if folder.is_dir() else folder
    recipe = read_manifest(path).recipe_short if path.name == MANIFEST and path.is_file() else ""
    own = folder.resolve().name
    return printable(own if not recipe or recipe in own else f"{own} ({recipe})", 80)


@contextlib.contextmanager
def _process(
    command: Sequence[str], what: str, **more: str
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A process, and the line of JSON that it prints once it is ready; ended afterwards.

    Errors: BadInput or StepFailed with the error that it says, StepFailed where it ends without a word.
    """
    own = {name: value for name, value in child_environment(**more).items() if name not in SECRETS}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own)
    try:
        assert process.stdout is not None
        said: dict[str, Any] = {}
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    said = found
                    break
        if "error" in said:
            raise (BadInput if said.get("code") == 2 else StepFailed)(said["error"])
        if not said:
            raise StepFailed(f"{what}: its process ended with {process.wait()} before it was ready")
        yield process, said
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(CLEARING_SECONDS / 4)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
