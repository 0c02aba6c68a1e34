"""The programs that ``verify --in`` names, each opening a file the way a person would with it alone."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantize.engines.gptqmodel.load import load_by_engine
from quantize.engines.isolated.environment import installed
from quantize.engines.isolated.known import isolated_engine
from quantize.errors import BadInput, StepFailed, Unsupported, first_line
from quantize.formats.base import Format
from quantize.formats.gptq_in_vllm import refused_by_vllm
from quantize.formats.packed import GPTQMODEL, TRANSFORMERS, PackedFormat
from quantize.gguf.container.files import find_gguf
from quantize.hf.load import read_config
from quantize.packages import version
from quantize.quiet import quiet
from quantize.recipe import RunOptions
from quantize.runtimes.base import Runtime
from quantize.runtimes.isolated import IsolatedRuntime
from quantize.runtimes.opening import open_runtime
from quantize.runtimes.transformers import TransformersRuntime
from quantize.runtimes.vllm_place import missing, vllm_place

#: what a person types -> the package that must be there; empty: it has an environment of its own
PROGRAMS = {
    "transformers": "transformers", "gptqmodel": "gptqmodel", "llama.cpp": "llama_cpp", "vllm": "vllm",
    "auto-gptq": "",
}  # fmt: skip
#: those that are not started unless they are asked for
BY_NAME = ("auto-gptq",)
DISTRIBUTIONS = {
    "transformers": "transformers", "gptqmodel": "gptqmodel", "llama.cpp": "llama-cpp-python", "vllm": "vllm",
}  # fmt: skip
ALIASES = {
    "llamacpp": "llama.cpp", "llama-cpp": "llama.cpp", "gptq-model": "gptqmodel", "autogptq": "auto-gptq",
}  # fmt: skip
#: what vLLM opens by itself
VLLM_OPENS = ("dense", "gptq", "awq", "compressed-tensors")
#: GPTQModel computes in this, by kernels that know all numbers of bits
ENGINE_DTYPE = "bfloat16"


def named(text: str) -> str:
    """Errors: BadInput where no program is called so."""
    name = ALIASES.get(text.lower(), text.lower())
    if name not in PROGRAMS:
        raise BadInput(f"--in {text}: no such runtime; known: {', '.join(PROGRAMS)}")
    return name


def why_not(name: str, path: Path, gguf: bool, storage: str, format: Format | None, asked: bool) -> str:
    """Why the program is not started on ``path``; "" where it is. ``asked``: by name."""
    if name == "vllm":
        return _why_not_vllm(path, gguf, storage, format, asked)
    if not PROGRAMS[name]:
        engine = isolated_engine(name)
        if installed(engine) is None:
            return f"{name} is not installed; install with: {engine.install_command}"
        return "" if storage == "gptq" else "it opens GPTQ folders"
    if find_spec(PROGRAMS[name]) is None:
        return f"{PROGRAMS[name]} is not installed here"
    if name == "llama.cpp":
        return "" if gguf else "it opens GGUF files"
    if gguf:
        if name == "gptqmodel":
            return "it opens GPTQ and AWQ folders"
        return "" if asked else "it opens GGUF files by a reader of its own for some families; ask by --in"
    packed = storage in ("gptq", "awq")
    if name == "gptqmodel" and not packed:
        return "it opens GPTQ and AWQ folders"
    if not packed or not isinstance(format, PackedFormat):
        return ""
    opener = format.opener(path)
    if name == "transformers" and opener != TRANSFORMERS:
        return f"it does not open these matrices in its model; {opener} does"
    known = opener == GPTQMODEL or (opener == TRANSFORMERS and format.engine_opens(path))
    if name == "gptqmodel" and not known and not asked:
        return "it is not known to compute this model from such files; ask by --in"
    return ""


def version_of(name: str) -> str:
    """Of a program that was run."""
    return version(DISTRIBUTIONS[name]) or "" if PROGRAMS[name] else isolated_engine(name).version


def _why_not_vllm(path: Path, gguf: bool, storage: str, format: Format | None, asked: bool) -> str:
    if vllm_place() is None:
        return missing()
    if gguf or storage == "bitsandbytes":
        return f"vLLM opens {'GGUF' if gguf else storage} through a plugin, which is not started here"
    if storage not in VLLM_OPENS:
        return f"vLLM does not open {storage}"
    refused = refused_by_vllm(read_config(path).get("quantization_config"))
    if refused and not asked:
        return f"vLLM 0.32 refuses it: {refused}; ask another vLLM by --in"
    known = format is not None and "vllm" in format.loads_in
    return "" if known or asked else "it is not known to compute this model from such files; ask by --in"


def open_named(request: dict[str, Any]) -> Runtime:
    """``request``: ``stage``, ``run``, ``exact``; ``program`` is one of ``PROGRAMS``, else what fits the
    file; ``small``: a folder with config and tokenizer of a GGUF; ``context``: tokens needed in a window.

    Errors: Unsupported where the program does not open such a file; those of opening it.
    """
    path, run, name = Path(request["stage"]), RunOptions(**request["run"]), request.get("program", "")
    gguf = find_gguf(path)
    if name == "gptqmodel":
        dtype = ENGINE_DTYPE if run.dtype == "auto" else run.dtype
        model = load_by_engine(path, dtype, run.resolved_device, run.trust_remote_code)
        return TransformersRuntime(path, run, model=model)
    if name in PROGRAMS and not PROGRAMS[name]:
        return IsolatedRuntime(name, path, run)
    if name == "transformers" and gguf:
        return _gguf_in_transformers(gguf, run, request.get("small", ""))
    if name == "vllm":  # as near to what is stored as its kernels compute
        return open_runtime(path, run, exact=True, context=int(request.get("context", 0)), runtime="vllm")
    return open_runtime(
        path, run, exact=request["exact"], context=int(request.get("context", 0)) if gguf else 0
    )


def _gguf_in_transformers(path: Path, run: RunOptions, small: str) -> Runtime:
    """Errors: Unsupported where transformers has no reader of such a file."""
    if not small:
        raise Unsupported(f"{path}: its config cannot be made from its metadata")
    with quiet():
        import torch
        from transformers import AutoModelForCausalLM

        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (ValueError, KeyError, NotImplementedError, AttributeError, TypeError) as error:
            raise Unsupported(f"{path}: transformers has no reader of it: {first_line(error)}") from error
        except (OSError, RuntimeError) as error:
            raise StepFailed(f"{path}: transformers cannot load it: {first_line(error)}") from error
    return TransformersRuntime(small, run, model=model.eval())
