"""Where vLLM is: it pins other libraries than this program does, so it is another Python that has it."""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quantize.engines.isolated.environment import Environment, installed
from quantize.engines.isolated.known import isolated_engine
from quantize.errors import BadInput, Unsupported

ENGINE = "vllm"
#: names the one to use: a Python, the program ``vllm``, or the folder of its environment
ELSEWHERE = "QUANTWRIGHT_VLLM"


@dataclass(frozen=True)
class Place:
    """``python``: has vLLM; ``whose``: where it was found, in words; ``environment``: the one that this
    program made, else None."""

    python: Path
    whose: str
    environment: Environment | None = None

    @property
    def program(self) -> Path | None:
        """``vllm`` beside the Python."""
        found = self.python.with_name("vllm")
        return found if os.access(found, os.X_OK) else None


def vllm_place(gpu: bool = False) -> Place | None:
    """By ``QUANTWRIGHT_VLLM``, in this Python, in the environment that ``env install vllm`` makes, or by the
    program on the path. ``gpu``: the environment's is for processors, and is passed over.

    Errors: BadInput where the variable names none.
    """
    if said := os.environ.get(ELSEWHERE):
        return Place(_named(Path(said).expanduser().absolute()), ELSEWHERE)
    if find_spec("vllm") is not None:
        return Place(Path(sys.executable), "this Python")
    made = None if gpu else installed(isolated_engine(ENGINE))
    if made is not None:
        return Place(made.python, f"the environment {made.folder.name}", made)
    program = shutil.which("vllm")
    python = _interpreter(Path(program)) if program else None
    return Place(python, f"{program} on the path") if python else None


def needed_vllm(what: str, gpu: bool = False) -> Place:
    """The same. Errors: Unsupported, with what to do."""
    found = vllm_place(gpu)
    if found is None:
        raise Unsupported(f"{what}: {missing(gpu)}")
    return found


def missing(gpu: bool = False) -> str:
    """What to do where it is not here."""
    own = "" if gpu else f"install its build for processors with: {isolated_engine(ENGINE).install_command}; "
    return f"vLLM is not installed here: {own}or set {ELSEWHERE} to a Python that has it"


def _named(path: Path) -> Path:
    candidates = [path / "bin" / "python", path / "python"] if path.is_dir() else [path]
    for candidate in candidates:
        python = _interpreter(candidate) if candidate.name == "vllm" else candidate
        if python is not None and os.access(python, os.X_OK) and python.is_file():
            return python
    raise BadInput(f"{ELSEWHERE}={path}: names no Python, no program vllm and no folder of an environment")


def _interpreter(program: Path) -> Path | None:
    """The Python that a script's first line names, else the one beside it."""
    try:
        with open(program, "rb") as file:
            first = file.readline(500).decode("utf-8", errors="replace").strip()
    except OSError:
        return None
    named = Path(first.removeprefix("#!").strip()) if first.startswith("#!/") else None
    for candidate in (named, program.with_name("python"), program.resolve().with_name("python")):
        if candidate is not None and candidate.name.startswith("python") and os.access(candidate, os.X_OK):
            return candidate
    return None
