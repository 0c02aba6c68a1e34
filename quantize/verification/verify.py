"""After a conversion: is what lies in the staging folder what the recipe meant, and does its own runtime
agree?

Four kinds of check. Types: the tensors that the recipe names are quantized. Tokenizer and chat template: the
source's. Weights: a second reader of the format, which shares no code with the engine that wrote nor the
runtime that serves, reads each: it equals what the engine computed (``check_weights``). Logits (``full``):
the runtime's equal those of the source architecture on the second reader's weights. The distance to the
source is recorded and never a gate: it is what the recipe costs.

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
from quantize.checkpoint.checkpoint import PROCESSOR_FILES, TOKENIZER_FILES, Checkpoint
from quantize.engines.base import Conversion
from quantize.errors import QuantwrightError
from quantize.formats.base import Format
from quantize.hf.names import IGNORED
from quantize.methods.base import Work
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime
from quantize.staging import held_folder
from quantize.verification.logits import WINDOW_TOKENS, Served, compare_logits, fixed_rows
from quantize.verification.process import Opened, Start, new_process
from quantize.verification.weights import check_weights

#: the runtime, the rows that it is asked for, and what opens it with kernels that compute in float32 -> what
#: was found, and the level that was reached
Compare = Callable[[Served, np.ndarray, Callable[[], Served] | None], tuple[list[Check], str]]


@dataclass(frozen=True)
class _Made:
    """What was made of what, and how."""

    work: Work[Any]
    stage: Path
    conversion: Conversion
    run: RunOptions
    start: Start


def verify(
    work: Work[Any],
    stage: Path,
    conversion: Conversion,
    run: RunOptions,
    level: str,
    start: Start = new_process,
) -> Verification:
    """Check the artifact in ``stage``; ``level`` ``tensors`` leaves the logits out. Never raises for a
    damaged artifact: a failed check says what is wrong. ``level`` of the result is ``tensors`` too where
    transformers does not have the source's architecture. ``start``: how an HF folder gets a process of its
    own.
    """
    if level == "none":
        return Verification(level="none")
    checks: list[Check] = []
    # the dtype is that of the conversion: an artifact is held against its weights in one that rounds less
    made = _Made(work, stage, conversion, run.model_copy(update={"dtype": "auto"}), start)
    format = work.format
    with _scratch(stage, run) as scratch:
        checks.append(_types(work, stage, conversion.notes))
        if format.hf_folder:
            checks += _companions(stage, work.checkpoint)
        spill = scratch if level == "full" else None
        weights = check_weights(work, stage, conversion, spill)
        checks += weights.checks
        if not all(check.passed for check in checks):
            return _result(level, format, checks)
        compare = None
        if weights.spill is not None:
            read, extra = weights.spill.read, frozenset(weights.extra)
            compare = partial(compare_logits, work, stage, read, extra)
        try:
            found, reached = (
                _in_a_process(made, compare, scratch) if format.hf_folder else _here(made, compare)
            )
            level = reached or level
            checks += found
        except QuantwrightError as error:
            checks.append(Check(name="opens", passed=False, detail=str(error)))
    return _result(level, format, checks)


def _in_a_process(made: _Made, compare: Compare | None, scratch: Path) -> tuple[list[Check], str]:
    """An HF folder, as any user would open it. Errors: QuantwrightError where it does not open."""
    length = min(context_length(made.work.checkpoint.config) or WINDOW_TOKENS, WINDOW_TOKENS)
    rows = fixed_rows(made.work.checkpoint, length) if compare else None
    # The kernels that a user gets, and where those round too much to tell, the slow ones.
    coarse = made.work.format.float32_kernels(made.stage)
    opened = Opened(made.stage, made.run, rows, scratch, exact=not coarse, start=made.start)
    foreign = [
        name
        for name in opened.unexpected
        if name not in made.work.checkpoint.tensors and not name.endswith(IGNORED)
    ]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return [
            Check(name="opens", passed=False, detail=f"the loader has no place for {foreign[0]}{more}")
        ], ""
    opens = Check(name="opens", passed=True, detail=f"in a separate process: {_backend(opened.about)}")
    if compare is None or rows is None:
        return [opens], ""
    open_again = partial(Opened, made.stage, made.run, rows, scratch, start=made.start)
    again = open_again if coarse else None
    found, level = compare(opened, rows, again)
    return [opens, *found], level


def _here(made: _Made, compare: Compare | None) -> tuple[list[Check], str]:
    """A GGUF, whose runtime is a separate process. Errors: QuantwrightError where it does not open."""
    with open_runtime(made.stage, made.run, exact=True, context=WINDOW_TOKENS) as runtime:
        checks = [Check(name="opens", passed=True, detail=_backend(runtime.describe()))]
        allowed = made.conversion.notes if made.run.allow_tokenizer_mismatch else None
        work = made.work
        checks += work.format.tokenizer_checks(made.stage, work.checkpoint, runtime.tokenize, allowed)
        if compare is None:
            return checks, ""
        rows = fixed_rows(made.work.checkpoint, min(runtime.context, WINDOW_TOKENS))
        found, level = compare(runtime, rows, None)
        return [*checks, *found], level


def _result(level: str, format: Format, checks: list[Check]) -> Verification:
    return Verification(
        level=cast(Literal["full", "tensors"], level),
        runtime=format.runtime,
        reader=format.reader,
        checks=tuple(checks),
    )


@contextmanager
def _scratch(stage: Path, run: RunOptions) -> Iterator[Path]:
    """Never inside the stage, whose files become the artifact's."""
    with held_folder(run.scratch or stage.absolute().parent, ".quantwright-verify-") as folder:
        yield folder


def _types(work: Work[Any], stage: Path, notes: list[Note]) -> Check:
    found, expected = work.quantized(stage), work.expected
    noted = {note.tensor for note in notes}
    missing = sorted(expected - set(found) - noted)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Check(name="types", passed=False, detail=f"{missing[0]}{more} should be quantized but is not")
    if expected and not found:
        return Check(name="types", passed=False, detail="nothing is quantized")
    wrong = sorted(name for name, kind in found.items() if name in expected and not work.format.fits(kind))
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
    """Files of tokenizer and processor byte for byte; no others beside them, which a loader might prefer."""
    found = [*checkpoint.tokenizer_files, *checkpoint.processor_files]
    source = {path.name: path for path in found}
    wrong = [name for name, path in source.items() if not _same_bytes(path, stage / name)]
    known = (*TOKENIZER_FILES, *PROCESSOR_FILES)
    wrong += [name for name in known if name not in source and (stage / name).exists()]
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


def _backend(about: dict[str, Any]) -> str:
    return " ".join(str(about[key]) for key in ("backend", "version", "dtype", "kernels") if about.get(key))
