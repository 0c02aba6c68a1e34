"""Which server opens an artifact here, and the command that starts it. None of them is ours."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantize.errors import Unsupported
from quantize.packages import importable, install_command
from quantize.runtimes.vllm_place import ELSEWHERE, missing, needed_vllm, vllm_place
from serving.target import Request
from serving.vllm import VLLM, served

#: the build for processors is another distribution, under whose name vLLM's own program does not start
VLLM_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True)
class Server:
    """``opens``: whether it opens the artifact. ``missing``: what it needs and is not here, or "".
    ``program``: on PATH, or with ``module`` a module of Python's, or what ``start`` says. ``arguments``: from
    the request and the address. ``answers``: a path that answers 200 once it is ready."""

    name: str
    opens: Callable[[Request], bool]
    missing: Callable[[], str]
    program: str
    arguments: Callable[[Request, str], list[str]]
    module: bool = False
    answers: str = "/health"
    start: Callable[[], tuple[str, ...]] | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of ``child_command`` that start it, before its own."""
        if self.start is not None:
            return ("serving.program", *self.start())
        return (self.program,) if self.module else ("serving.program", self.program)


def _needs(*modules: str, package: str) -> Callable[[], str]:
    def missing() -> str:
        absent = [name for name in modules if not importable(name)]
        return f"{install_command('', [package])} (for {', '.join(absent)})" if absent else ""

    return missing


def _on_path(program: str, install: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(program) else install


def _is_gguf(request: Request) -> bool:
    return request.artifact.gguf is not None


def _loads_in(runtime: str) -> Callable[[Request], bool]:
    return lambda request: not _is_gguf(request) and runtime in request.artifact.manifest.loads_in


def _llama_server(request: Request, host: str) -> list[str]:
    path, _ = request.gguf("llama-server")
    arguments = ["--model", str(path.resolve()), "--alias", request.name, "--host", host]
    arguments += ["--port", str(request.port), "--jinja"]
    return arguments + (["--ctx-size", str(request.context)] if request.context else [])


def _llama_cpp_python(request: Request, host: str) -> list[str]:
    path, _ = request.gguf("llama-cpp-python's server")
    arguments = ["--model", str(path.resolve()), "--model_alias", request.name, "--verbose", "false"]
    # 0: the model's own context
    return [*arguments, "--host", host, "--port", str(request.port), "--n_ctx", str(request.context or 0)]


def _vllm(request: Request, host: str) -> list[str]:
    flags, _ = served(VLLM, request)
    words = ["serve"] if _vllm_program() == VLLM.start[:1] else ["--model"]
    arguments = [*words, str(request.artifact.folder.resolve()), *flags]
    return [*arguments, "--host", host, "--port", str(request.port)]


def _vllm_program() -> tuple[str, ...]:
    """Where it is on the path, the program itself, unless the person names another."""
    if shutil.which("vllm") and ELSEWHERE not in os.environ:
        return VLLM.start[:1]
    return (str(needed_vllm("serve").python), "-I", "-m", VLLM_SERVER)


def _vllm_missing() -> str:
    return "" if vllm_place() else missing()


def _transformers(request: Request, host: str) -> list[str]:
    folder = str(request.artifact.folder.resolve())
    return ["serve", folder, "--host", host, "--port", str(request.port)]


SERVERS = (
    Server("llama-server", _is_gguf, _on_path("llama-server", "llama.cpp's llama-server on PATH"),
        "llama-server", _llama_server),
    Server(
        "llama-cpp-python",
        _is_gguf,
        _needs(
            "llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings",
            package="llama-cpp-python[server]",
        ),
        "llama_cpp.server",
        _llama_cpp_python,
        module=True,
        answers="/v1/models",
    ),
    Server("vllm", _loads_in("vllm"), _vllm_missing, "vllm", _vllm, start=_vllm_program),
    Server(
        "transformers",
        _loads_in("transformers"),
        _needs("transformers", "uvicorn", "fastapi", "openai", package="transformers[serving]"),
        "transformers.cli.transformers",
        _transformers,
        module=True,
    ),
)  # fmt: skip


def choose(request: Request, wanted: str = "") -> Server:
    """``wanted``: the name of one of SERVERS, else the first that opens the artifact and is here.

    Errors: Unsupported where there is none, with what would have to be installed.
    """
    artifact = request.artifact
    what = f"{artifact.folder}: is {artifact.manifest.recipe_short}"
    able = [server for server in SERVERS if server.opens(request)]
    if wanted:
        able = [server for server in able if server.name == wanted]
        if not able:
            names = (
                ", ".join(server.name for server in SERVERS if server.opens(request)) or "no server of these"
            )
            raise Unsupported(f"{what}, which {wanted} does not open ({names} would)")
    here = next((server for server in able if not server.missing()), None)
    if here is None:
        if not able:
            raise Unsupported(
                f"{what}, which none of {', '.join(server.name for server in SERVERS)} opens (it loads in "
                f"{', '.join(artifact.manifest.loads_in)}); convert the source with --to gguf-q4_k_m"
            )
        raise Unsupported(f"{what}, and no server for it is here; needed: {_one_of(able)}")
    return here


def _one_of(servers: Sequence[Server]) -> str:
    return ", or ".join(f"for {server.name}: {server.missing()}" for server in servers)
