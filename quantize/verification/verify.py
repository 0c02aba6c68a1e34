"""After a conversion: is what lies in the staging folder what the recipe meant, and does its own runtime
agree?

Four kinds of check. Types: the tensors that the recipe names are quantized. Tokenizer and chat template: the
source's. Weights: a second reader of the format, which shares no code with the engine that wrote nor the
runtime that serves, reads each: it equals what the engine computed and is nobody else's (``verify_weights``).
Logits (``full``): the runtime's equal those of the source architecture on the second reader's weights. The
distance to the source is recorded and never a gate: it is what the recipe costs.

Memory stays at a few tensors: weights read back are spilled, as float32, to a scratch folder
(``run.scratch``, else beside the artifact: 4 bytes a weight for the time of the check) and mapped from there,
module by module.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from quantize.artifact.artifact import Check, Note, Verification
from quantize.calibration.windows import context_length
from quantize.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint
from quantize.checkpoint.templates import folder_templates
from quantize.engines.base import Conversion
from quantize.errors import QuantwrightError
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.metadata import verify_tokenizer
from quantize.gguf.tokenizer.special import gguf_name
from quantize.hf.names import IGNORED
from quantize.methods.base import Method
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime
from quantize.staging import held_folder
from quantize.verification.logits import WINDOW_TOKENS, Served, compare_logits, fixed_rows
from quantize.verification.process import Opened
from quantize.verification.weights import check_weights

#: the runtime and the rows that it is asked for -> what was found, and the level that was reached
Compare = Callable[[Served, np.ndarray], tuple[list[Check], str]]


@dataclass(frozen=True)
class _Made:
    """What was made, of what, how."""

    method: Method
    recipe: Recipe
    stage: Path
    checkpoint: Checkpoint
    conversion: Conversion
    run: RunOptions


def verify(
    method: Method,
    recipe: Recipe,
    stage: Path,
    checkpoint: Checkpoint,
    conversion: Conversion,
    run: RunOptions,
    level: str,
) -> Verification:
    """Check the artifact in ``stage``; ``level`` ``tensors`` leaves the logits out. Never raises for a
    damaged artifact: a failed check says what is wrong. ``level`` of the result is ``tensors`` too where
    transformers has not the source's architecture.

    A method may bring its own tolerance as ``kl_tolerance(recipe) -> float``, and which types its tensors may
    have as ``fits(recipe, kind) -> bool``.
    """
    if level == "none":
        return Verification(level="none")
    checks: list[Check] = []
    made = _Made(method, recipe, stage, checkpoint, conversion, run)
    with _scratch(stage, run) as scratch:
        checks.append(_types(method, recipe, stage, checkpoint, conversion.notes))
        if method.hf_folder:
            checks += _companions(stage, checkpoint)
        spill = scratch if level == "full" else None
        weights = check_weights(method, recipe, stage, checkpoint, conversion, spill)
        checks += weights.checks
        if not all(check.passed for check in checks):
            return _result(level, method, checks)
        compare = None
        if weights.spill is not None:
            read, extra = weights.spill.read, frozenset(weights.extra)
            compare = partial(compare_logits, method, recipe, stage, checkpoint, read, extra)
        try:
            found, reached = (
                _in_a_process(made, compare, scratch) if method.hf_folder else _here(made, compare)
            )
            level = reached or level
            checks += found
        except QuantwrightError as error:
            checks.append(Check(name="opens", passed=False, detail=str(error)))
    return _result(level, method, checks)


def _in_a_process(made: _Made, compare: Compare | None, scratch: Path) -> tuple[list[Check], str]:
    """An HF folder, as a stranger would open it. Errors: QuantwrightError where it does not open."""
    length = min(context_length(made.checkpoint.config) or WINDOW_TOKENS, WINDOW_TOKENS)
    rows = fixed_rows(made.checkpoint, length) if compare else None
    opened = Opened(made.stage, made.run, rows, scratch)
    foreign = [
        name
        for name in opened.unexpected
        if name not in made.checkpoint.tensors and not name.endswith(IGNORED)
    ]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return [
            Check(name="opens", passed=False, detail=f"the loader has no place for {foreign[0]}{more}")
        ], ""
    opens = Check(name="opens", passed=True, detail=f"in a separate process: {_backend(opened.about)}")
    if compare is None or rows is None:
        return [opens], ""
    found, level = compare(opened, rows)
    return [opens, *found], level


def _here(made: _Made, compare: Compare | None) -> tuple[list[Check], str]:
    """A GGUF, whose runtime is a process of its own. Errors: QuantwrightError where it does not open."""
    with open_runtime(made.stage, made.run, exact=True, context=WINDOW_TOKENS) as runtime:
        checks = [Check(name="opens", passed=True, detail=_backend(runtime.describe()))]
        allowed = made.conversion.notes if made.run.allow_tokenizer_mismatch else None
        checks += _tokenizer(made.recipe, made.stage, made.checkpoint, runtime, allowed)
        if compare is None:
            return checks, ""
        found, level = compare(runtime, fixed_rows(made.checkpoint, min(runtime.context, WINDOW_TOKENS)))
        return [*checks, *found], level


def _result(level: str, method: Method, checks: list[Check]) -> Verification:
    reader = "quantize.numerics" if method.hf_folder else "gguf (numpy)"
    return Verification(
        level=cast(Literal["full", "tensors"], level),
        runtime=method.runtime,
        reader=reader,
        checks=tuple(checks),
    )


@contextmanager
def _scratch(stage: Path, run: RunOptions) -> Iterator[Path]:
    """Never inside the stage, whose files become the artifact's."""
    with held_folder(run.scratch or stage.absolute().parent, ".quantwright-verify-") as folder:
        yield folder


def _types(method: Method, recipe: Recipe, stage: Path, checkpoint: Checkpoint, notes: list[Note]) -> Check:
    found = method.quantized(stage, recipe)
    expected = method.expected(checkpoint, recipe)
    noted = {note.tensor for note in notes}
    missing = sorted(expected - set(found) - noted)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Check(name="types", passed=False, detail=f"{missing[0]}{more} should be quantized but is not")
    fits = getattr(method, "fits", None)
    wrong = sorted(
        name
        for name, kind in found.items()
        if fits is not None and name in expected and not fits(recipe, kind)
    )
    if wrong:
        return Check(name="types", passed=False, detail=f"{wrong[0]} is stored as {found[wrong[0]]}")
    kinds: dict[str, int] = {}
    for kind in found.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    return Check(
        name="types",
        passed=True,
        detail=", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none to quantize",
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
    recipe: Recipe, stage: Path, checkpoint: Checkpoint, runtime: Runtime, allowed: list[Note] | None
) -> list[Check]:
    """Where the tokenizer is not the source's own files: what the runtime makes of awkward texts.

    ``allowed``: where to note what another file would mend; None where that fails.
    """
    checks = []
    gguf = next(iter(sorted(stage.glob("*.gguf"))), None)
    if gguf is not None:
        report = verify_tokenizer(checkpoint, runtime.tokenize, pre=getattr(recipe, "pre_tokenizer", None))
        detail = report.summary()
        if report.fixable:
            first = report.fixable[0]
            detail = (
                f"{first.text[:40]!r} gives {first.llamacpp_ids[:6]}, its source "
                f"{first.source_ids[:6]} ({first.cause}); {detail}"
            )
        passed = not report.fixable or allowed is not None
        if report.fixable and allowed is not None:
            allowed.append(
                Note(tensor="*", what=f"tokenizer: {detail}", why="--allow-tokenizer-mismatch was given")
            )
        checks.append(
            Check(name="tokenizer", passed=passed, value=float(len(report.mismatches)), detail=detail)
        )
        wanted = {gguf_name(name): text for name, text in folder_templates(checkpoint.folder).items()}
        same = templates_of(read_gguf(gguf).kvs) == wanted
        checks.append(Check(name="chat template", passed=same, detail="" if same else "not the source's"))
    return checks


def _backend(about: dict[str, Any]) -> str:
    return " ".join(str(about[key]) for key in ("backend", "version", "dtype", "kernels") if about.get(key))
