"""Fresh processes without the time that imports take: a server imports a library once and forks for each
folder, so that what opens an artifact has seen no engine and no other artifact.

Usage: ``with Fresh("optimum.quanto") as start: Opened(stage, run, rows, folder, start=start)``.
"""

import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path

#: what every reader of an HF folder imports
COMMON = (
    "torch._dynamo", "transformers.modeling_utils", "transformers.generation.utils",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.quantizers.auto", "safetensors.torch", "quantize.verification.process",
    "quantize.runtimes.transformers",
)  # fmt: skip


class Fresh:
    """``libraries``: what the process would import anyway. ``seconds``: of processor time, all processes."""

    def __init__(self, *libraries: str):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.seconds = 0.0
        self._server = subprocess.Popen(
            [sys.executable, __file__, *COMMON, *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, folder: Path) -> str:
        print(folder, file=self._server.stdin, flush=True)
        assert self._server.stdout is not None
        seconds, _, how = self._server.stdout.readline().rstrip("\n").partition(" ")
        self.seconds += float(seconds)
        return how

    def __enter__(self) -> "Fresh":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()


def serve(libraries: list[str]) -> None:
    """A folder a line in, seconds and how it failed out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from quantize.hf.extensions import ensure_kernel_environment, keep_hub_caches

    ensure_kernel_environment()
    if "gptqmodel" in libraries:
        keep_hub_caches()
    for name in libraries:
        importlib.import_module(name)
    import torch

    from quantize.verification.process import main

    # kernels compile their dequantization at the first call: a minute for milliseconds
    torch.compiler.set_stance("force_eager")
    gc.freeze()  # a collection over all that libraries made takes longer than opening a small model
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                main(Path(line.rstrip("\n")))
            except BaseException as error:
                os.write(writing, f"{type(error).__name__}: {error}".encode()[:300])
            finally:
                os._exit(0)
        os.close(writing)
        _, status, used = os.wait4(child, 0)
        with os.fdopen(reading, "rb") as said:
            how = " ".join(said.read().decode(errors="replace").split())
        code = os.waitstatus_to_exitcode(status)
        how = f"ended by signal {-code}" if code < 0 else f"failed: {how}" if how else ""
        answers.write(f"{used.ru_utime + used.ru_stime:.3f} {how}\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1:])
