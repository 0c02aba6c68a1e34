"""Rows that were not listed: which divergence is only noise.

- noise floor: the reference against itself in another dtype (a GGUF file: with another KV cache), whose
  rounding is not a loss;
- cross-runtime floor: the unquantized checkpoint as an F32 GGUF in llama.cpp (F32 KV cache, flash attention
  off) against transformers in float32, side by side, so exact: what is left is the difference between two
  programs.

On few windows (``Windows.spread``): their differences vary little, and three passes over those are a
twenty-fifth of the reference's own time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from evals.divergence import compare
from evals.keeping import Kept
from evals.reference import ReferenceRows, SideBySideReference
from evals.room import check_room
from evals.rows import Heading, divergence_rows, unavailable_row
from evals.subjects import Typed
from evals.windows import Windows
from quantize.errors import Unsupported, one_line
from quantize.methods.registry import method, parse_recipe
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime
from quantize.sources.opening import open_checkpoint
from quantize.staging import temporary_folder

ROOM_BYTES = 512 << 20  # of a second runtime, beside its weights

Known = tuple[Windows, ReferenceRows]
#: where the reference's rows come from, given those that are kept; the runtime that is compared with them
Pair = tuple[Callable[[ReferenceRows], ReferenceRows], Runtime]


def floor_rows(
    reference: Typed,
    runtime: Runtime,
    known: Sequence[Known],
    run: RunOptions,
    heading: Heading,
    kept: Kept | None,
) -> list[EvalResult]:
    """Rows with role ``floor``, named by what was done; without a value, and with the reason, where that
    cannot be had. ``kept``: those of an earlier call."""
    if kept and (items := kept.read()) is not None:
        return [EvalResult.from_json(item) for item in items]
    rows: list[EvalResult] = []
    settled = True
    sampled = []
    for windows, of_reference in known:
        indices = windows.spread()
        sampled.append((windows.only(indices), of_reference.only(windows, indices)))
    for name, weights, opening in _floors(reference, runtime, run):
        own = replace(heading, artifact=name, digest="", role="floor")
        try:
            check_room(weights + ROOM_BYTES, run)
            with opening as (source, other):
                described = other.describe()
                backend, environment = (
                    str(described.get("backend", other.name)),
                    heading.environment | {"runtime": described},
                )
                own = replace(own, backend=backend, environment=environment)
                found = [
                    row
                    for w, k in sampled
                    for row in divergence_rows(compare(source(k), other, w, None, name), w, own)
                ]
        except (
            Exception
        ) as error:  # also a library's own: what was asked for must not be lost to a row that was not
            found = [unavailable_row(one_line(error), w, own) for w, _ in sampled]
            settled &= isinstance(error, (Unsupported, ImportError))
        rows += found
    if kept and settled:
        kept.write([row.to_json() for row in rows])
    return rows


def _floors(
    reference: Typed, runtime: Runtime, run: RunOptions
) -> Iterator[tuple[str, int, AbstractContextManager[Pair]]]:
    """Of each its name, the bytes of its weights, and what opens it: the source of the reference's rows, the
    other runtime."""
    subject = reference.subject()
    parameters = subject.parameters or 0
    name = Path(reference.name).name if Path(reference.name).is_absolute() else reference.name
    if reference.gguf:
        yield f"{name} with an F32 KV cache", subject.size_bytes or 0, _noise(reference, run, exact=True)
        return
    other, size = ("float32", 4) if runtime.describe().get("dtype") == "bfloat16" else ("bfloat16", 2)
    yield f"{name} in {other}", size * parameters, _noise(reference, run.model_copy(update={"dtype": other}))
    yield f"{name} as F32 GGUF", 4 * parameters, _other_program(reference, runtime, run)


@contextmanager
def _noise(reference: Typed, run: RunOptions, exact: bool = False) -> Iterator[Pair]:
    with open_runtime(reference.path, run, exact=exact) as noisy:
        yield lambda known: known, noisy


@contextmanager
def _other_program(reference: Typed, runtime: Runtime, run: RunOptions) -> Iterator[Pair]:
    if reference.config.get("quantization_config"):
        raise Unsupported("the reference is itself quantized, so it has no unquantized GGUF")
    with (
        _f32_gguf(reference, run) as path,
        _exact(reference, runtime, run) as exact,
        open_runtime(path, run, exact=True) as other_program,
    ):
        yield lambda _: SideBySideReference(exact), other_program


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
    """The checkpoint as an F32 GGUF in a temporary folder. Errors: Unsupported where it cannot be made;
    StepFailed where the disk does not suffice."""
    checkpoint = open_checkpoint(str(reference.path), trust_remote_code=run.trust_remote_code)
    recipe = parse_recipe("gguf-f32")
    work = method(recipe.method).plan(checkpoint, recipe)
    with temporary_folder("floor", run.scratch) as folder:
        work.write(folder, run, None)
        yield next(iter(sorted(folder.glob("*.gguf"))))
