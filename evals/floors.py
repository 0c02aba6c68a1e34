"""Rows that nobody listed: below what a divergence means nothing.

- noise floor: the reference against itself in another dtype, whose rounding nobody would call a loss;
- cross-runtime floor: the unquantized checkpoint as an F32 GGUF in llama.cpp (F32 KV cache, flash attention off) against
  transformers in float32: what is left is the difference between two programs.

Both on the first ``FLOOR_TOKENS`` scored tokens, side by side with the reference, so exact.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
