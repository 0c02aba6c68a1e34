"""Speed and memory in vLLM: its own process measures itself (``vllm_worker.py``), so that what lies between
it and this program is in no number.

The model is opened as `vllm serve` would, in the dtype that vLLM chooses, but without the cache of prefixes
and, unless ``compile`` says otherwise, without compilation and CUDA graphs; and a prompt is taken in one go.
"""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.options import BenchSettings
from quantize.calibration.windows import context_length
from quantize.checkpoint.library_folder import library_folder
from quantize.errors import BadInput, StepFailed
from quantize.gguf.container.files import find_gguf
from quantize.hf.load import read_config, storage_format
from quantize.recipe import RunOptions
from quantize.runtimes.vllm_apart import VllmProcess
from quantize.runtimes.vllm_place import needed_vllm
from quantize.sources.hub import resolve_folder
from quantize.staging import temporary_folder

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Bytes = Annotated[int, Field(ge=0, lt=2**60, strict=True)]
Word = Annotated[str, Field(max_length=200, strict=True)]
Answer = TypeVar("Answer", bound=BaseModel)


class Opened(BaseModel):
    """What it says once the model is open."""

    model_config = ConfigDict(frozen=True)

    version: Word
    torch: Word
    dtype: Word
    quantization: Word
    device: Word
    import_seconds: Seconds
    load_seconds: Seconds
    rss_before_load_bytes: Bytes
    kv_cache_bytes: Bytes | None  # set aside, whatever a text needs


class Taken(BaseModel):
    """What it says of one batch. ``step_seconds``: of each test, of each repetition, of each step."""

    model_config = ConfigDict(frozen=True)

    warm_up_seconds: Seconds
    prefill_seconds: list[Seconds]
    first_token_seconds: list[Seconds]
    step_seconds: list[list[list[Seconds]]]
    peak_rss_bytes: Bytes


def measure_in_vllm(path: Path, run: RunOptions, options: BenchSettings, load_as: str = "") -> dict[str, Any]:
    """Raw samples, as ``benchmarks.worker.measure`` returns them.

    Errors: BadInput for what vLLM is not asked for; Unsupported where it is not installed or refuses the
    model; StepFailed where it fails, or answers what cannot be read."""
    if find_gguf(path):
        raise BadInput(f"{path}: is a GGUF file, which vllm does not open here; drop --runtime")
    if load_as:
        raise BadInput(f"{path}: vLLM opens what is stored; it cannot quantize while loading to {load_as}")
    if options.attention:
        raise BadInput("--attention: vLLM chooses its own; drop it or --runtime")
    gpu = run.resolved_device.startswith("cuda")
    place = needed_vllm("--runtime vllm", gpu)
    folder, _ = resolve_folder(str(path), code=run.trust_remote_code)
    config = read_config(folder)
    vocabulary = int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0)
    needed = max(options.prefill, max(options.depths) + options.decode)
    context = min(needed, context_length(config) or needed)
    prefill = min(options.prefill, context)
    decodes = [(depth, min(options.decode, context - depth)) for depth in options.depths if depth < context]
    longest = max(prefill, *(depth for depth, _ in decodes))
    with (
        temporary_folder("vllm", run.scratch) as scratch,
        library_folder(folder, run.trust_remote_code) as seen,
        closing(VllmProcess(place, run, scratch)) as process,
    ):
        answer = process.ask(
            "open",
            model=str(Path(seen).absolute()),
            dtype=run.dtype,
            context=context,
            trust_remote_code=run.trust_remote_code,
            watch=False,
            enforce_eager=not options.compile,
            max_num_seqs=max(options.batches),
            max_num_batched_tokens=max(options.batches) * longest,
        )
        opened = _read(Opened, answer)
        batches = []
        for batch in options.batches:
            ids = np.random.default_rng(0).integers(0, vocabulary, (batch, longest))
            answer = process.ask(
                "speed", rows=ids.tolist(), prefill=prefill, decodes=decodes, repetitions=options.repetitions
            )
            taken = _read(Taken, answer)
            batches.append(_samples(batch, taken, decodes, options.repetitions))
    return {
        "import_seconds": opened.import_seconds,
        "load_seconds": opened.load_seconds,
        "context": context,
        "prefill": prefill,
        "batches": batches,
        "peak_rss_bytes": taken.peak_rss_bytes,
        "rss_before_load_bytes": opened.rss_before_load_bytes,
        "gpu_bytes": None,  # vLLM takes the share of a card that it is told to: no measure of the model
        "runtime": {
            "backend": "vllm",
            **opened.model_dump(exclude={"import_seconds", "load_seconds", "rss_before_load_bytes"}),
            "format": storage_format(folder, config),
            "threads": run.resolved_threads,
            "compiled": options.compile,
        },
    }


def _read(kind: type[Answer], answer: dict[str, Any]) -> Answer:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StepFailed(f"vLLM's answer cannot be read: {where}: {first['msg']}") from None


def _samples(batch: int, taken: Taken, decodes: list[tuple[int, int]], repetitions: int) -> dict[str, Any]:
    """Errors: StepFailed where not everything that was asked for was measured."""
    asked = [repetitions, repetitions, *([steps] * repetitions for _, steps in decodes)]
    steps = [[len(each) for each in runs] for runs in taken.step_seconds]
    if [len(taken.prefill_seconds), len(taken.first_token_seconds), *steps] != asked:
        raise StepFailed(f"vLLM did not measure what it was asked for, of {batch} sequences at once")
    tests = [
        {"depth": depth, "decode": decode, "step_seconds": runs}
        for (depth, decode), runs in zip(decodes, taken.step_seconds, strict=True)
    ]
    said = taken.model_dump(include={"warm_up_seconds", "prefill_seconds", "first_token_seconds"})
    return {"batch": batch, **said, "decodes": tests}
