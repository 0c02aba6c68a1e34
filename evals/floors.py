"""Rows that nobody listed: below what a divergence means nothing, and what a GGUF's weights alone do.

- noise floor: the reference against itself in another dtype, whose rounding nobody would call a loss;
- cross-runtime floor: the unquantized checkpoint as an F32 GGUF in llama.cpp (F32 KV cache, flash attention off) against
  transformers in float32: what is left is the difference between two programs;
- ``kl_weights_only`` of a GGUF: its dequantized tensors in the reference's runtime, since llama.cpp on a CPU quantizes
  activations too.

All on the first ``FLOOR_TOKENS`` scored tokens, side by side with the reference, so exact.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.divergence import compare
from evals.protocols import Windows
from evals.reference import ReferenceRows, SideBySideReference
from evals.result import EvalResult
from evals.rows import Heading, divergence_rows
from evals.subjects import Typed
from quantize.checkpoint import Checkpoint
from quantize.errors import QuantwrightError
from quantize.recipe import RunOptions, parse_recipe
from quantize.registry import method
from quantize.runtimes import Runtime, open_runtime

FLOOR_TOKENS = 8192
Say = Callable[[str], None]


def head(windows: Windows) -> Windows:
    """As many whole windows as hold ``FLOOR_TOKENS`` scored tokens, at least two."""
    count, scored = 0, 0
    for window in windows.windows:
        if count >= 2 and scored + window.scored > FLOOR_TOKENS:
            break
        count, scored = count + 1, scored + window.scored
    return windows.head(count)


def floor_rows(
    reference: Typed, runtime: Runtime, windows: Sequence[Windows], run: RunOptions, heading: Heading, say: Say
) -> list[EvalResult]:
    """Rows with role ``floor``, named by what was done. What cannot be had is said and left out."""
    if reference.gguf or reference.config.get("quantization_config"):
        say(f"{reference.name}: no floor rows: the reference is no plain Hugging Face checkpoint")
        return []
    rows: list[EvalResult] = []
    name = Path(reference.name).name if Path(reference.name).is_absolute() else reference.name
    shared = [head(w) for w in windows]
    other = "float32" if runtime.describe().get("dtype") == "bfloat16" else "bfloat16"
    try:
        with open_runtime(reference.path, run.model_copy(update={"dtype": other})) as noisy:
            rows += _rows(SideBySideReference(runtime), noisy, shared, heading, f"{name} in {other}")
    except QuantwrightError as error:
        say(f"no noise floor: {error}")
    try:
        with (
            _f32_gguf(reference, run) as path,
            _exact(reference, runtime, run) as exact,
            open_runtime(path, run, exact=True) as other_program,
        ):
            rows += _rows(SideBySideReference(exact), other_program, shared, heading, f"{name} as F32 GGUF")
    except (QuantwrightError, ImportError) as error:
        say(f"no cross-runtime floor: {error}")
    return rows


def _rows(known: ReferenceRows, other: Runtime, windows: Sequence[Windows], heading: Heading, name: str) -> list[EvalResult]:
    described = other.describe()
    own = replace(
        heading,
        artifact=name,
        digest="",
        role="floor",
        backend=str(described.get("backend", other.name)),
        environment=heading.environment | {"runtime": described},
    )
    return [row for w in windows for row in divergence_rows(compare(known, other, w, None, name), w, own)]


@contextmanager
def _exact(reference: Typed, runtime: Runtime, run: RunOptions) -> Iterator[Runtime]:
    """The reference in float32: the runtime that is open, if it is that."""
    if runtime.describe().get("dtype") == "float32":
        yield runtime
        return
    with open_runtime(reference.path, run.model_copy(update={"dtype": "float32"}), exact=True) as opened:
        yield opened


@contextmanager
def _f32_gguf(reference: Typed, run: RunOptions) -> Iterator[Path]:
    """The checkpoint as an F32 GGUF in a temporary folder. Errors: Unsupported where it cannot be made."""
    checkpoint = Checkpoint.open(str(reference.path), trust_remote_code=run.trust_remote_code)
    recipe = parse_recipe("gguf-f32")
    gguf = method(recipe.method)
    gguf.check(checkpoint, recipe)
    with tempfile.TemporaryDirectory(dir=run.scratch) as folder:
        gguf.convert(checkpoint, recipe, Path(folder), run, None)
        yield next(iter(sorted(Path(folder).glob("*.gguf"))))


def weights_only_rows(
    typed: Typed,
    reference: Typed | None,
    known: Sequence[tuple[Windows, ReferenceRows]],
    run: RunOptions,
    heading: Heading,
    say: Say,
) -> list[EvalResult]:
    """``kl_weights_only`` for each protocol of a GGUF artifact of ours; empty, with the reason said, where it cannot be had."""
    if reference is None or reference.gguf or typed.manifest is None:
        return []
    try:
        with _dequantized(typed, reference, run) as folder, open_runtime(folder, run) as runtime:
            rows = []
            for windows, rows_of_reference in known:
                shared = head(windows)
                found = divergence_rows(compare(rows_of_reference, runtime, shared, None, typed.name), shared, heading)
                for row in found[:1]:
                    detail = row.detail | {
                        "how": "its dequantized tensors in the reference's runtime",
                        "runtime": runtime.describe(),
                    }
                    rows.append(replace(row, metric="kl_weights_only", detail=detail))
            return rows
    except QuantwrightError as error:
        say(f"{typed.name}: no kl_weights_only: {error}")
        return []


@contextmanager
def _dequantized(typed: Typed, reference: Typed, run: RunOptions) -> Iterator[Path]:
    """A float32 Hugging Face folder of the artifact's weights. Errors: StepFailed where memory or disk do not suffice."""
    from safetensors.numpy import save_file

    assert typed.manifest is not None
    checkpoint = Checkpoint.open(str(reference.path), trust_remote_code=run.trust_remote_code)
    recipe = parse_recipe(typed.manifest.recipe)
    with tempfile.TemporaryDirectory(dir=run.scratch) as name:
        folder = Path(name)
        _check_room(checkpoint.parameters * 4, folder, run)
        weights = dict(
            method(recipe.method).dequantize(typed.path if typed.path.is_dir() else typed.path.parent, recipe, checkpoint)
        )
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        del weights
        config: dict[str, Any] = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}), encoding="utf-8")
        for path in checkpoint.companion_files:
            shutil.copy(path, folder / path.name)
        yield folder


def _check_room(needed: int, folder: Path, run: RunOptions) -> None:
    import psutil

    from quantize.errors import StepFailed

    memory = min(run.memory_bytes or 1 << 62, psutil.virtual_memory().available)
    if 2 * needed > memory or needed > shutil.disk_usage(folder).free:
        raise StepFailed(f"its weights take {needed / 2**30:.1f} GiB in float32, more than memory or disk allow")
