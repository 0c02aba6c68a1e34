"""Which runtimes there are, and which of them opens a path."""

from importlib import import_module
from pathlib import Path

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.files import find_gguf
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes.base import Runtime

RUNTIMES = {
    "transformers": "quantize.runtimes.transformers:TransformersRuntime",
    "llamacpp": "quantize.runtimes.llamacpp:LlamaCppRuntime",
    "vllm": "quantize.runtimes.vllm:VllmRuntime",
}


def open_without_weights(path: Path | str, run: RunOptions) -> Runtime | None:
    """What ``open_runtime`` returns for a plain Hugging Face folder, without logits: enough to know how its
    results are labelled. None where that needs the weights."""
    path = Path(path)
    if find_gguf(path):
        return None
    try:
        found: Runtime | None = import_module("quantize.runtimes.transformers").skeleton(path, run)
    except Unsupported:
        return None
    return found


def open_runtime(
    path: Path | str,
    run: RunOptions,
    *,
    load_as: Recipe | None = None,
    exact: bool = False,
    context: int = 0,
    runtime: str = "",
    own_process: bool = True,
) -> Runtime:
    """Open ``path``: an artifact folder, a .gguf file, or an HF folder or Hub id (quantized or not).

    ``runtime``: one of ``RUNTIMES``, else the one that fits the files. ``load_as`` quantizes while loading
    (quanto, bnb). ``exact`` asks for the most exact arithmetic the runtime offers (llama.cpp: F32 KV cache,
    flash attention off). ``context``: tokens needed per window; 0: the model's own. ``own_process``:
    llama.cpp, which ends its process if it rejects a file, runs in a child process.
    """
    path = Path(path)
    gguf = find_gguf(path)
    name = runtime or ("llamacpp" if gguf else "transformers")
    if (name == "llamacpp") != bool(gguf):
        raise BadInput(
            f"{path}: is {'a GGUF file' if gguf else 'no GGUF file'}, "
            f"which {name} does not open here; drop --runtime"
        )
    module, _, attribute = RUNTIMES[name].partition(":")
    more = {} if own_process or not gguf else {"own_process": False}
    make = getattr(import_module(module), attribute)
    opened: Runtime = make(gguf or path, run, load_as=load_as, exact=exact, context=context, **more)
    return opened
