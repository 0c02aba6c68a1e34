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
from typing import Literal, cast

import numpy as np

from quantize.artifact import Check, Note, Verification
from quantize.checkpoint import FLOAT_DTYPES, TOKENIZER_FILES, Checkpoint
from quantize.errors import QuantwrightError
from quantize.methods import Conversion, Method
from quantize.numerics.resemblance import compare
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes import Runtime, open_runtime
from quantize.verify_logits import WINDOW_TOKENS, compare_logits

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

    A method may bring checks of its own as ``verify_extra(stage, recipe, checkpoint, runtime) -> Iterable[Check]``, its own
    tolerance as ``kl_tolerance(recipe) -> float``, and which types its tensors may have as ``fits(recipe, kind) -> bool``.
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
            checks += _tokenizer(
                method, recipe, stage, checkpoint, runtime, conversion.notes if run.allow_tokenizer_mismatch else None
            )
            if level == "full":
                assert weights.spill is not None
                read, extra = weights.spill.read, frozenset(weights.extra)
                found, level = compare_logits(method, recipe, stage, checkpoint, read, extra, runtime)
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
    wrong = sorted(name for name, kind in found.items() if fits is not None and name in expected and not fits(recipe, kind))
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


def _tokenizer(
    method: Method, recipe: Recipe, stage: Path, checkpoint: Checkpoint, runtime: Runtime, allowed: list[Note] | None
) -> list[Check]:
    """Where the tokenizer is not the source's own files: what the runtime makes of awkward texts.

    ``allowed``: where to note what another file would mend; None where that fails.
    """
    checks = []
    gguf = next(iter(sorted(stage.glob("*.gguf"))), None)
    if gguf is not None:
        from quantize.gguf.reader import read_gguf
        from quantize.gguf.tokenizer import verify_tokenizer

        report = verify_tokenizer(checkpoint, runtime.tokenize, pre=getattr(recipe, "pre_tokenizer", None))
        detail = report.summary()
        if report.fixable:
            first = report.fixable[0]
            detail = (
                f"{first.text[:40]!r} gives {first.llamacpp_ids[:6]}, its source {first.source_ids[:6]} ({first.cause}); {detail}"
            )
        passed = not report.fixable or allowed is not None
        if report.fixable and allowed is not None:
            allowed.append(Note(tensor="*", what=f"tokenizer: {detail}", why="--allow-tokenizer-mismatch was given"))
        checks.append(Check(name="tokenizer", passed=passed, value=float(len(report.mismatches)), detail=detail))
        same = (read_gguf(gguf).kvs.get("tokenizer.chat_template") or None) == (checkpoint.chat_template or None)
        checks.append(Check(name="chat template", passed=same, detail="" if same else "not the source's"))
    extra = getattr(method, "verify_extra", None)
    return checks + (list(extra(stage, recipe, checkpoint, runtime)) if extra else [])


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


def _backend(runtime: Runtime) -> str:
    about = runtime.describe()
    return " ".join(str(about[key]) for key in ("backend", "version", "dtype", "kernels") if about.get(key))
