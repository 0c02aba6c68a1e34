"""One measurement in a separate process: open a model, warm up, time prefill and decode, read the peak
memory.

``python -m benchmarks.worker SPEC OUT`` reads a JSON spec and writes JSON; ``benchmarks.speed`` starts it and
knows the fields.
"""

import contextlib
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_vllm import measure_in_vllm
from benchmarks.options import BenchSettings
from quantize.errors import QuantwrightError
from quantize.gguf.container.files import find_gguf
from quantize.methods.registry import parse_recipe
from quantize.process import peak_rss_bytes
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Raw samples. Times are in seconds, memory in bytes."""
    started = time.perf_counter()
    run = RunOptions.model_validate(spec["run"])
    options = BenchSettings.model_validate(spec["options"])
    if options.runtime == "vllm":
        return measure_in_vllm(Path(spec["path"]), run, options, spec.get("load_as", ""))
    if run.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(run.threads))
    _import_engine(Path(spec["path"]))
    imported = time.perf_counter()
    rss_before = _rss()
    load_as = parse_recipe(spec["load_as"]) if spec.get("load_as") else None
    needed = max(options.prefill, max(options.depths) + options.decode)
    # A model whose context is unknown until it is open: ask for no more than it has.
    limit = spec.get("context") or needed
    opening = open_runtime(
        Path(spec["path"]), run, load_as=load_as, context=min(needed, limit), own_process=False
    )
    with opening as runtime:
        loaded = time.perf_counter()
        runtime.tune(options.attention or "", options.compile)
        prefill = min(options.prefill, runtime.context)
        batches = [_measure_batch(runtime, options, batch, prefill, needed) for batch in options.batches]
        described = runtime.describe()
        context = runtime.context
        gpu = _gpu_bytes()
    return {
        "import_seconds": imported - started,
        "load_seconds": loaded - imported,
        "context": context,
        "prefill": prefill,
        "batches": batches,
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_before_load_bytes": rss_before,
        "gpu_bytes": gpu,
        "runtime": described,
    }


def _measure_batch(
    runtime: Any, options: BenchSettings, batch: int, prefill: int, needed: int
) -> dict[str, Any]:
    """Prefill and decode of ``batch`` sequences at once, after a warm-up of each, as llama-bench does."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, runtime.vocabulary, needed) for _ in range(batch)])
    began = time.perf_counter()
    if prefill:
        runtime.start_rows(ids[:, :prefill])
    tests = []
    for depth in options.depths:
        decode = min(options.decode, runtime.context - depth)
        if decode < 1:
            continue
        _decode(runtime, ids, depth, min(decode, 8))
        tests.append({"depth": depth, "decode": decode, "step_seconds": []})
    warm_up = time.perf_counter() - began
    prefills, firsts = [], []
    for _ in range(options.repetitions):
        if prefill:
            begin = time.perf_counter()
            logits = runtime.start_rows(ids[:, :prefill])
            end = time.perf_counter()
            logits.argmax(1)
            firsts.append(time.perf_counter() - begin)
            prefills.append(end - begin)
        for test in tests:
            test["step_seconds"].append(_decode(runtime, ids, test["depth"], test["decode"]))
    return {
        "batch": batch,
        "warm_up_seconds": warm_up,
        "prefill_seconds": prefills,
        "first_token_seconds": firsts,
        "decodes": tests,
    }


def _decode(runtime: Any, ids: np.ndarray, depth: int, tokens: int) -> list[float]:
    """Seconds of each of ``tokens`` one-token steps of all rows; at depth 0 the first of them begins from an
    empty cache."""
    times = []
    if depth:
        runtime.start_rows(ids[:, :depth])
    else:
        begin = time.perf_counter()
        runtime.start_rows(ids[:, :1])
        times.append(time.perf_counter() - begin)
    for position in range(depth + len(times), depth + tokens):
        begin = time.perf_counter()
        runtime.step_rows(ids[:, position])
        times.append(time.perf_counter() - begin)
    return times


def _import_engine(path: Path) -> None:
    """Import what opening will need, so that the load time is the model's own."""
    for name in (
        ("quantize.kernels.llamacpp", "llama_cpp")
        if find_gguf(path)
        else ("torch", "transformers.modeling_utils")
    ):
        with contextlib.suppress(ImportError):  # opening says what is missing, and how to mend it
            import_module(name)


def _rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _gpu_bytes() -> int | None:
    """Peak of torch's allocator, or what the driver says this process holds; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())))
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    mine = [line.split(",")[1] for line in lines if line.split(",")[0].strip() == str(os.getpid())]
    return sum(int(mib) for mib in mine) << 20 if mine else None


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        document = measure(spec)
    except QuantwrightError as error:
        document = {"error": str(error), "exit_code": error.exit_code}
    Path(sys.argv[2]).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
