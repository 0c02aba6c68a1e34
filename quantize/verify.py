"""After a conversion: is what lies in the staging folder what the recipe meant, and does its own runtime agree?

Four kinds of check. Types: the tensors that the recipe names are quantized. Tokenizer and chat template: the source's. Weights: a
second reader of the format, which shares no code with the engine that wrote nor the runtime that serves, reads each, and each
points the way its source does. Logits (``full``): the runtime's equal those of the source architecture on the second reader's
weights. The distance to the source is recorded and never a gate: it is what the recipe costs.

Memory stays at a few tensors: weights read back are spilled, as float32, to a scratch folder (``run.scratch``, else beside the
artifact: 4 bytes a weight for the time of the check) and mapped from there, module by module.
"""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from quantize.artifact import Check, Note, Verification
from quantize.checkpoint import FLOAT_DTYPES, TOKENIZER_FILES, Checkpoint
from quantize.errors import QuantwrightError, StepFailed, Unsupported
from quantize.methods import Conversion, Method
from quantize.numerics.resemblance import compare
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes import Runtime, open_runtime

WINDOWS, WINDOW_TOKENS = 2, 64
#: What is fed to both sides: prose and code, so that a tokenizer of either finds words of its own.
TEXT = (
    "The river had risen in the night, and by morning the lower fields were under water. Two men stood on the bridge and argued "
    'about the price of hay. "It will be worth double by Easter," said the older one, and he was right, though not for the '
    "reason he gave. In 1894, 37 of the 112 farms along the valley changed hands.\n\n"
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n\n"
    "Water boils at 100 degrees Celsius at sea level, and at about 71 on the top of Mount Everest. Why? Because the air is "
    "thinner there, its pressure is lower, and a bubble of steam has less to push against. The "
    "same holds in a kitchen in Mexico City.\n"
)

# How far a runtime's logits may be from the second reader's: mean Kullback-Leibler divergence in nats, (reader || runtime).
# float32 on both sides: only the order of additions differs (1e-12 to 1e-10 seen).
KL_FLOAT32 = 1e-7
# What each runtime and format adds of its own, beyond float32's.
KL_TOLERANCES = {
    "transformers": KL_FLOAT32,
    # LLM.int8() rounds activations to 8 bits by row, in every mode; the second reader's side does not.
    "bnb-int8": 5e-3,
    # llama.cpp rounds activations to 8 bits in blocks of 32 or 256 wherever weights are quantized, exact or not.
    "llamacpp": 2e-2,
}
# Weights: direction and size against the source, as a bug would change them and rounding does not. A row at 4 bits and more keeps
# a cosine above 0.9 with its source and a tensor its size to a percent; at 2 bits an outlier in a group can double what rounding
# leaves of the rest.
MIN_ROW_COSINE = {"few": 0.2, "many": 0.6}
SLOPE = {"few": (0.4, 4.0), "many": (0.8, 1.25)}
FEW_BITS = 3


@dataclass
class _Weights:
    """What the second reader's pass found."""

    checks: list[Check] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)  # read, but no tensor of the source: a tied head stored apart
    spill: "_Spill | None" = None


def verify(
    method: Method,
    recipe: Recipe,
    stage: Path,
    checkpoint: Checkpoint,
    conversion: Conversion,
    run: RunOptions,
    level: str,
) -> Verification:
    """Check the artifact in ``stage``; ``level`` ``tensors`` leaves the logits out. Never raises for a damaged artifact: a failed
    check says what is wrong. ``level`` of the result is ``tensors`` too where transformers cannot run the source's architecture.

    A method may bring checks of its own as ``verify_extra(stage, recipe, checkpoint, runtime) -> Iterable[Check]``, and its own
    tolerance as ``kl_tolerance(recipe) -> float``.
    """
    if level == "none":
        return Verification(level="none")
    checks: list[Check] = []
    with _scratch(stage, run) as scratch:
        checks.append(_types(method, recipe, stage, checkpoint, conversion.notes))
        if method.hf_folder:
            checks += _companions(stage, checkpoint)
        spill = scratch if level == "full" else None
        weights = _weights(method, recipe, stage, checkpoint, spill)
        checks += weights.checks
        if not all(check.passed for check in checks):
            return _result(level, method, checks)
        try:
            opened = open_runtime(stage, run, exact=True, context=WINDOW_TOKENS)
        except QuantwrightError as error:
            return _result(level, method, [*checks, Check(name="opens", passed=False, detail=str(error))])
        with opened as runtime:
            checks.append(Check(name="opens", passed=True, detail=_backend(runtime)))
            checks += _tokenizer(method, recipe, stage, checkpoint, runtime)
            if level == "full":
                found, level = _logits(method, recipe, checkpoint, weights, runtime)
                checks += found
    return _result(level, method, checks)


def _result(level: str, method: Method, checks: list[Check]) -> Verification:
    reader = "quantize.numerics" if method.hf_folder else "gguf (numpy)"
    return Verification(
        level=cast(Literal["full", "tensors"], level), runtime=method.runtime, reader=reader, checks=tuple(checks)
    )


@contextmanager
def _scratch(stage: Path, run: RunOptions) -> Iterator[Path]:
    """Never inside the stage, whose files become the artifact's."""
    parent = run.scratch or stage.absolute().parent
    folder = Path(tempfile.mkdtemp(prefix=f".{stage.name.lstrip('.')}.verify-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _types(method: Method, recipe: Recipe, stage: Path, checkpoint: Checkpoint, notes: list[Note]) -> Check:
    found = method.quantized(stage, recipe)
    expected = method.expected(checkpoint, recipe)
    noted = {note.tensor for note in notes}
    missing = sorted(expected - set(found) - noted)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Check(name="types", passed=False, detail=f"{missing[0]}{more} should be quantized and is not")
    fits = getattr(method, "fits", None)
    wrong = sorted(name for name, kind in found.items() if fits is not None and not fits(recipe, kind))
    if wrong:
        return Check(name="types", passed=False, detail=f"{wrong[0]} is stored as {found[wrong[0]]}")
    kinds: dict[str, int] = {}
    for kind in found.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    return Check(
        name="types", passed=True, detail=", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none to quantize"
    )


def _companions(stage: Path, checkpoint: Checkpoint) -> list[Check]:
    """Tokenizer files byte for byte; no others beside them, which a loader might prefer."""
    source = {path.name: path for path in checkpoint.tokenizer_files}
    wrong = [name for name, path in source.items() if not _same_bytes(path, stage / name)]
    wrong += [name for name in TOKENIZER_FILES if name not in source and (stage / name).exists()]
    same = dataclasses.replace(checkpoint, folder=stage).chat_template == checkpoint.chat_template
    return [
        Check(
            name="tokenizer",
            passed=not wrong,
            detail=f"{wrong[0]} is not the source's" if wrong else f"{len(source)} files equal",
        ),
        Check(name="chat template", passed=same, detail="" if same else "not the source's"),
    ]


def _same_bytes(a: Path, b: Path) -> bool:
    return b.is_file() and a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes()


def _tokenizer(method: Method, recipe: Recipe, stage: Path, checkpoint: Checkpoint, runtime: Runtime) -> list[Check]:
    extra = getattr(method, "verify_extra", None)
    return list(extra(stage, recipe, checkpoint, runtime)) if extra else []


def _weights(method: Method, recipe: Recipe, stage: Path, checkpoint: Checkpoint, spill: Path | None) -> _Weights:
    """Every weight of the source, read back once: covered, of its shape, finite, and like its source."""
    from quantize.hf.names import IGNORED

    found = method.quantized(stage, recipe)
    result = _Weights(spill=_Spill(spill) if spill is not None else None)
    errors: dict[str, float] = {}
    problems: list[str] = []
    seen: set[str] = set()
    rescaled = (
        recipe.method == "awq"
    )  # its scales move from one tensor to the one before: each alone need not resemble its source
    try:
        for name, values in method.dequantize(stage, recipe, checkpoint):
            if result.spill is not None:
                result.spill.add(name, values)
            if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values).all():
                problems.append(f"{name} holds NaN or Inf")
            if name not in checkpoint.tensors:
                result.extra.add(name)
                continue
            seen.add(name)
            if checkpoint.tensors[name].dtype not in FLOAT_DTYPES:
                continue
            if values.shape != checkpoint.tensors[name].shape:
                problems.append(f"{name} has shape {list(values.shape)}, its source {list(checkpoint.tensors[name].shape)}")
                continue
            errors[name], problem = _resembles(name, checkpoint.read_float32(name), values, found.get(name, ""), rescaled)
            if problem:
                problems.append(problem)
    except (QuantwrightError, ValueError, KeyError) as error:
        problems.append(f"the second reader cannot read it: {error}")
    absent = [name for name in checkpoint.tensors if name not in seen and not name.endswith(IGNORED)]
    if absent and not problems:
        problems.append(f"{absent[0]} is not in the artifact")
    detail = problems[0] + (f" ({len(problems) - 1} more)" if len(problems) > 1 else "") if problems else f"{len(seen)} tensors"
    result.checks.append(Check(name="weights", passed=not problems, detail=detail))
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        result.checks.append(
            Check(
                name="weight error",
                passed=True,
                value=float(np.mean(list(errors.values()))),
                detail=f"mean relative error of {len(errors)} tensors; largest {errors[worst]:.3g} at {worst}",
            )
        )
    return result


def _resembles(name: str, source: np.ndarray, values: np.ndarray, kind: str, rescaled: bool) -> tuple[float, str]:
    """(relative error, what is wrong or nothing)."""
    likeness = compare(source, values)
    digits = re.search(r"\d+", kind)
    few = "few" if (digits and int(digits.group()) <= FEW_BITS) or rescaled else "many"
    low, high = SLOPE[few]
    if not low <= likeness.slope <= high:
        return likeness.error, f"{name} is {likeness.slope:.3g} times its source; its scales are not what was quantized"
    if likeness.worst_cosine < MIN_ROW_COSINE[few]:
        return (
            likeness.error,
            f"{name}: row {likeness.worst_row} does not resemble its source (cosine {likeness.worst_cosine:.2f})",
        )
    return likeness.error, ""


class _Spill:
    """float32 arrays as raw files, mapped when read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        number = len(self._shapes)
        np.ascontiguousarray(values, dtype=np.float32).tofile(self.folder / f"{number}.f32")
        self._shapes[name] = (number, values.shape)

    def read(self, name: str) -> np.ndarray:
        number, shape = self._shapes[name]
        if 0 in shape:
            return np.empty(shape, np.float32)
        mapped: np.ndarray = np.memmap(self.folder / f"{number}.f32", np.float32, "r", shape=shape or (1,))
        return mapped.reshape(shape)


def _logits(
    method: Method, recipe: Recipe, checkpoint: Checkpoint, weights: _Weights, runtime: Runtime
) -> tuple[list[Check], str]:
    """(checks, level): the runtime against the second reader's weights, and both against the source."""
    assert weights.spill is not None
    rows = fixed_rows(checkpoint, min(runtime.context, WINDOW_TOKENS))
    try:
        read = _run_reference(checkpoint, weights.spill.read, rows, frozenset(weights.extra))
    except Unsupported as error:
        kept = Check(name="logits", passed=True, detail=f"not compared: {error}")
        return [kept, *_runs(runtime, rows)], "tensors"
    width = min(read.shape[-1], runtime.vocabulary)
    served = _Comparison(read, width)
    try:
        runtime.logits(rows, 0, served.add)
    except StepFailed as error:
        return [Check(name="logits", passed=False, detail=str(error))], "full"
    tolerance = kl_tolerance(method, recipe)
    checks = [
        Check(
            name="logits",
            passed=served.kl_mean <= tolerance,
            value=served.kl_mean,
            tolerance=tolerance,
            detail=f"mean KL divergence from the second reader's weights, {rows.size} positions",
        ),
        Check(
            name="largest difference",
            passed=True,
            value=served.largest,
            detail="of a log-probability above 1e-4, same positions; recorded",
        ),
    ]
    source = _Comparison(read, width, reverse=True)
    _run_streamed(checkpoint, checkpoint.read_float32, rows, frozenset(), source.add)
    checks.append(
        Check(
            name="distance to source",
            passed=True,
            value=source.kl_mean,
            detail="mean KL divergence of the second reader's weights from the source's; recorded: what the recipe costs",
        )
    )
    return checks, "full"


def fixed_rows(checkpoint: Checkpoint, length: int) -> np.ndarray:
    """Token ids (WINDOWS, length) of a fixed text, repeated where it is too short."""
    from quantize.tokenizer import SourceTokenizer

    ids = np.asarray(SourceTokenizer.open(checkpoint.folder).encode(TEXT, add_special=False), dtype=np.int64)
    return np.resize(ids, (WINDOWS, length))


def kl_tolerance(method: Method, recipe: Recipe) -> float:
    own = getattr(method, "kl_tolerance", None)
    if own is not None:
        return float(own(recipe))
    name = f"{recipe.method}-{getattr(recipe, 'weights', '')}"
    return KL_TOLERANCES.get(name, KL_TOLERANCES.get(method.runtime, KL_FLOAT32))


class _Comparison:
    """Mean KL divergence between logits kept (rows, positions, vocabulary) and logits pushed in pieces.

    (kept || pushed), or the other way round with ``reverse``. Columns beyond ``width`` (padding that one side adds) are left out.
    """

    def __init__(self, kept: np.ndarray, width: int, reverse: bool = False):
        self._kept, self._width, self._reverse = kept, width, reverse
        self._sum, self._count, self.largest = 0.0, 0, 0.0

    def add(self, row: int, first: int, logits: np.ndarray) -> None:
        for begin in range(0, len(logits), 16):  # double precision of 262k columns takes 2 MB a position
            part = logits[begin : begin + 16, : self._width]
            kept = self._kept[row, first + begin : first + begin + len(part), : self._width]
            p, q = _log_softmax(kept), _log_softmax(part)
            if self._reverse:
                p, q = q, p
            self._sum += float((np.exp(p) * (p - q)).sum())
            self._count += len(part)
            likely = p > np.log(1e-4)
            self.largest = max(self.largest, float(np.abs(p - q)[likely].max(initial=0)))

    @property
    def kl_mean(self) -> float:
        """Rounding can make a sum of nothing slightly negative."""
        return max(0.0, self._sum / max(1, self._count))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _run_reference(checkpoint: Checkpoint, read: Any, rows: np.ndarray, extra: frozenset[str]) -> np.ndarray:
    """All logits (rows, positions, vocabulary): a window of 64 positions and 262k columns is 67 MB."""
    kept: list[np.ndarray] = []

    def keep(row: int, first: int, logits: np.ndarray) -> None:
        kept.append(logits.copy())

    _run_streamed(checkpoint, read, rows, extra, keep)
    return np.concatenate(kept).reshape(*rows.shape, -1)


def _run_streamed(checkpoint: Checkpoint, read: Any, rows: np.ndarray, extra: frozenset[str], consume: Any) -> None:
    from quantize.hf.streamed import streamed_model
    from quantize.runtimes.transformers import TransformersRuntime

    model = streamed_model(checkpoint, read, extra)
    with TransformersRuntime(checkpoint.folder, RunOptions(device="cpu", dtype="float32"), model=model) as runtime:
        runtime.logits(rows, 0, consume)


def _runs(runtime: Runtime, rows: np.ndarray) -> list[Check]:
    """That the runtime computes at all, where there is nothing to compare with."""
    finite = True

    def look(row: int, first: int, logits: np.ndarray) -> None:
        nonlocal finite
        finite = finite and bool(np.isfinite(logits).all())

    runtime.logits(rows, 0, look)
    return [Check(name="runs", passed=finite, detail="" if finite else "its logits are not finite")]


def _backend(runtime: Runtime) -> str:
    about = runtime.describe()
    return " ".join(str(about[key]) for key in ("backend", "version", "dtype", "kernels") if about.get(key))
