"""Where the environment of an engine lies, and what is known of it once it is finished.

The folder's name holds a key of all that decides what lies in it: the lock, the Python and the torch that it
borrows. A virtual environment holds its own path, so it is made where it stays: it counts once its marker is
there, which is written last. Beside the folder lies ``NAME-KEY.lock``, held alone by who makes or removes it
and shared by who runs in it.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quantize.engines.isolated.known import NAME, IsolatedEngine
from quantize.errors import BadInput, Unsupported
from quantize.files import read_json, user_cache
from quantize.locks import waited
from quantize.terminal import log

ELSEWHERE = "QUANTWRIGHT_ENVIRONMENTS"
FOLDER, MARKER, BORROWED = "environments", "environment.json", "borrowed"
#: changes when what is put into an environment changes
LAYOUT = 1


@dataclass(frozen=True)
class Environment:
    """A finished one. ``versions``: of its distributions, by their names; ``torch``: the version it borrows,
    empty where it has none."""

    engine: IsolatedEngine
    folder: Path
    versions: dict[str, str]
    torch: str

    @property
    def python(self) -> Path:
        return python_of(self.folder)

    def in_use(self) -> AbstractContextManager[None]:
        """Nobody removes it meanwhile."""
        return waited(lock_of(self.folder), lambda: None, shared=True)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def packages_of(folder: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def environments() -> Path:
    """The folder that holds all: in the user's cache, or the one that QUANTWRIGHT_ENVIRONMENTS names. Errors:
    BadInput where it cannot be made."""
    try:
        said = os.environ.get(ELSEWHERE)
        folder = Path(said).absolute() if said else user_cache() / FOLDER
        folder.mkdir(exist_ok=True, parents=True)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be made ({error.strerror}); set {ELSEWHERE} to a folder for engines"
        ) from None
    return folder


def check_possible(engine: IsolatedEngine) -> None:
    """Errors: Unsupported where its packages do not go with this Python, or the torch at hand."""
    python = platform.python_version()
    if not Requirement(f"python{engine.python}").specifier.contains(python):
        raise Unsupported(f"{engine.name}: its packages want Python {engine.python}, and this is {python}")
    torch = torch_at_hand() if engine.torch else ""
    if engine.torch and not Requirement(f"torch{engine.torch}").specifier.contains(torch.partition("+")[0]):
        raise Unsupported(
            f"{engine.name}: borrows the torch at hand and wants {engine.torch}, and this is {torch}; "
            "install that with: pip install -c quantize/constraints.txt torch"
        )


def check_gpu(engine: IsolatedEngine, what: str) -> None:
    """Errors: Unsupported where ``what`` is made on a CUDA GPU only, and there is none."""
    if engine.gpu:
        import torch

        if not torch.cuda.is_available():
            raise Unsupported(
                f"{what}: {engine.label} quantizes on a CUDA GPU only, and there is none here; "
                "use engine=native, or a machine that has one"
            )


def torch_at_hand() -> str:
    return metadata.version("torch")


def place_of(engine: IsolatedEngine) -> Path:
    """The folder in which the engine's environment for this Python and torch lies, or will."""
    decides = {
        "layout": LAYOUT,
        "lock": engine.sha256,
        "python": [platform.python_implementation(), platform.python_version(), sys.base_prefix],
        "machine": [platform.system(), platform.machine()],
        "torch": [torch_at_hand(), os.path.realpath(str(metadata.distribution("torch").locate_file("")))]
        if engine.torch
        else None,
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return environments() / f"{engine.name}-{key}"


def installed(engine: IsolatedEngine) -> Environment | None:
    """Its finished environment; None where there is none for this Python and torch."""
    return finished(engine, place_of(engine))


def finished(engine: IsolatedEngine, folder: Path) -> Environment | None:
    if not (folder / MARKER).is_file() or not os.access(python_of(folder), os.X_OK):
        return None
    if any(link.is_symlink() and not link.exists() for link in (folder / BORROWED).glob("*")):
        return None  # what it borrowed was removed
    try:
        said = read_json(folder / MARKER)
        return Environment(engine, folder, dict(said["versions"]), str(said["torch"]))
    except (BadInput, KeyError, TypeError, ValueError):
        return None


def needed(engine: IsolatedEngine, what: str) -> Environment:
    """The same. Errors: Unsupported, with the command that mends it; ``what`` needs it."""
    found = installed(engine)
    if found is None:
        check_possible(engine)
        raise Unsupported(
            f"{what}: needs {engine.name} in an environment of its own; "
            f"install with: {engine.install_command}"
        )
    return found


def folders(name: str) -> list[Path]:
    """Of all environments of an engine, finished or not, for whatever Python."""
    found = (path for path in environments().iterdir() if path.is_dir())
    return sorted(
        path for path in found if path.name.rpartition("-")[0] == name and NAME.fullmatch(path.name)
    )


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """To make or remove it."""
    return waited(
        lock_of(folder), lambda: log(f"{folder.name}: another process is at work there; waiting for it")
    )


def borrowed() -> Iterator[tuple[str, Path]]:
    """(name, path) of files and folders that make up the torch at hand and what came with it (CUDA's
    libraries, triton), for an environment to link."""
    waiting, seen = ["torch"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        tops = dict.fromkeys(file.parts[0] for file in found.files or () if file.parts)
        for top in tops:
            path = Path(str(found.locate_file(top)))
            if top not in ("..", "bin", "__pycache__") and path.exists():
                yield top, path
        for text in found.requires or ():
            wanted = Requirement(text)
            comes = wanted.name.lower().startswith(("nvidia-", "triton", "cuda-", "pytorch-triton"))
            if comes and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
                waiting.append(wanted.name)
