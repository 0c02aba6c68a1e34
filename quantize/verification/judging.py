"""Whether programs agree with the second reader's weights, step by step too, and with one another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput, QuantwrightError, StepFailed, Unsupported, one_line
from quantize.inspection.problems import Problem
from quantize.inspection.reading import Reading
from quantize.terminal import printable
from quantize.verification.named_runtimes import BY_NAME
from quantize.verification.process import Opened
from quantize.verification.reference import Comparison, Judged, Read, Reference, log_softmax, run_reference
from quantize.verification.report import Between, Ran, Report
from quantize.verification.spill import Spill
from quantize.verification.subject import PROMPT_TOKENS, Subject, open_in, text_of

#: a greedy step may take another token than the reference where the two are this near: nats, or this many
#: times what the program's log-probabilities are off elsewhere
NEAR_TIE, TIE_MARGIN = 0.25, 8.0
#: two programs where no reader of ours says what is right: nats between them
KL_BETWEEN = 2e-2
#: of GPTQModel, which computes all in bfloat16, and of transformers' own reader of GGUF, in float32
KL_BFLOAT16, KL_READER = 1e-3, 1e-5
#: of vLLM, which computes all in one dtype; in float32 as transformers' reader
KL_VLLM = {"bfloat16": 1e-3, "float16": 1e-4}
#: the format whose schemes say how activations are rounded
STEPS = "compressed-tensors"
#: what code of an architecture raises where its weights come one by one
THEIRS = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)


def reference_of(subject: Subject, report: Report) -> Reference | None:
    """Of a folder's own config, else of the source's; of a GGUF by its source's where that is given."""
    reading, spill = subject.reading, subject.spill
    if reading is None or spill is None or report.why_not:
        return None
    table, rows = reading.format.gelu_table, subject.rows
    tries: list[tuple[Checkpoint, Read, frozenset[str]]] = []
    if reading.own is not None and reading.gguf is None:
        tries.append((reading.own, spill.read, subject.extra))
    if subject.source is not None:
        tries.append((subject.source, partial(_completed, spill, subject.source), subject.extra))
    if reading.own is not None and reading.gguf is not None:  # its config is made from metadata
        tries.append((reading.own, reading.own.read_float32, frozenset()))
    why = reading.why_not_own
    for checkpoint, read, extra in tries:
        try:
            reference = Reference(checkpoint, read, rows, extra, table)
            reference.rounded(_rounding(subject, reading))
            return reference
        except (QuantwrightError, *THEIRS) as error:
            why = why or printable(one_line(error), 300)
    report.why_not = why
    return None


def _completed(spill: Spill, source: Checkpoint, name: str) -> np.ndarray:
    """What a text never asks, and the file leaves out, comes from the source."""
    return spill.read(name) if name in spill else source.read_float32(name)


def _rounding(subject: Subject, reading: Reading) -> dict[str, str] | None:
    return reading.format.activation_types(reading.stage)


def judge(subject: Subject, report: Report, reference: Reference | None, opened: dict[str, Opened]) -> None:
    source = _source_logits(subject, report)
    if source is not None and reference is not None:
        report.kl_recipe = _distance(source, reference.exact).kl_mean
    judged = []
    for ran in report.runtimes:
        judged.append(
            _judged(subject, ran, opened[ran.name], reference, source) if ran.name in opened else ran
        )
    report.runtimes = judged
    report.prompt = text_of(subject, subject.rows[0, :PROMPT_TOKENS].tolist())
    names = [ran.name for ran in judged if ran.name in opened and ran.kl != float("inf")]
    by_name = {ran.name: ran for ran in judged}
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if (found := _between(subject, opened, by_name[first], by_name[second])) is not None:
                report.between.append(found)
    if reference is None:
        report.runtimes = [_agreeing(ran, report.between) for ran in report.runtimes]


def _source_logits(subject: Subject, report: Report) -> np.ndarray | None:
    source = subject.source
    if source is None:
        return None
    try:
        return run_reference(
            source, source.read_float32, subject.rows, frozenset(), None, False, lambda model: None
        )
    except (QuantwrightError, *THEIRS) as error:
        report.problems.append(Problem("note", "the source was not run", printable(one_line(error), 300)))
        return None


def _judged(
    subject: Subject, ran: Ran, opened: Opened, reference: Reference | None, source: np.ndarray | None
) -> Ran:
    if "logits.f32" not in {path.name for path in opened.folder.iterdir()}:
        return ran  # it tells scores of the text's own tokens only
    try:
        if source is not None:
            far = Comparison(source, min(source.shape[-1], opened.vocabulary))
            opened.logits(subject.rows, 0, far.add)
            ran = replace(ran, kl_source=far.kl_mean, top1_source=far.top1)
        if reference is None:
            opened.logits(
                subject.rows, 0, Comparison(np.zeros((*subject.rows.shape, opened.vocabulary)), 1).add
            )
            return ran
        kinds, tolerance, again = _allowed(subject, ran.name, opened)
        found = reference.judge(opened, kinds, tolerance, again)
        if not found.passed and ran.name == "gptqmodel":  # its bfloat16 rounds between matrices too
            exact = replace(subject, run=subject.run.model_copy(update={"dtype": "float32"}))
            finer = reference.judge(open_in(exact, ran.name, exact=True), kinds, tolerance)
            if finer.passed:
                detail = f"{finer.detail}; in float32: in bfloat16, its own dtype, {found.kl:.2g}"
                found = replace(finer, largest=found.largest, detail=detail)
    except (StepFailed, BadInput, Unsupported) as error:
        return replace(ran, status="differs", why=printable(error, 300))
    ran = replace(
        ran,
        status="agrees" if found.passed else "differs",
        why="" if found.passed else "its logits are not those of the weights as the format documents them",
        kl=found.kl, tolerance=found.tolerance, largest=found.largest, top1=found.top1, detail=found.detail,
    )  # fmt: skip
    return _greedy(subject, ran, reference, found, kinds) if found.passed else ran


def _allowed(
    subject: Subject, name: str, opened: Opened
) -> tuple[dict[str, str] | None, float, Callable[[], Opened] | None]:
    """How the program rounds activations, what else its logits may be off, and what opens it in float32."""
    reading = subject.reading
    assert reading is not None
    matrices = [n for n, info in reading.base.tensors.items() if len(info.shape) == 2]
    if name == "gptqmodel":
        return dict.fromkeys(matrices, "bf16_io"), KL_BFLOAT16, None
    if name == "vllm":
        own = reading.format.activation_types(reading.stage) if subject.storage == STEPS else None
        dtype = str(opened.about["dtype"])
        kinds = {n: kind.replace("_token", "_row") for n, kind in own.items()} if own else None
        if dtype in KL_VLLM and kinds is None:
            kinds = dict.fromkeys(matrices, "bf16_io" if dtype == "bfloat16" else "f16_io")
        return kinds, max(KL_VLLM.get(dtype, 0.0), KL_READER), None
    if name in BY_NAME or (name == "transformers" and subject.gguf is not None):  # all in float32
        return None, KL_READER, None
    again = None
    if reading.format.float32_kernels(reading.stage):
        again = partial(open_in, subject, name, exact=True)
    return _rounding(subject, reading), reading.format.kl_tolerance, again


def _greedy(
    subject: Subject, ran: Ran, reference: Reference, found: Judged, kinds: dict[str, str] | None
) -> Ran:
    """Step by step it says what the reference finds likeliest, or as likely as rounding can tell."""
    if not ran.ids:
        return ran
    row = np.array([*subject.rows[0, :PROMPT_TOKENS].tolist(), *ran.ids[:-1]], np.int64)[None]
    logits = log_softmax(reference.of(row, kinds)[0, PROMPT_TOKENS - 1 :])
    gaps = logits.max(-1) - logits[np.arange(len(ran.ids)), np.asarray(ran.ids)]
    allowed = max(NEAR_TIE, TIE_MARGIN * found.largest)
    first = int(np.argmax(gaps > allowed)) if bool((gaps > allowed).any()) else -1
    if first < 0:
        return ran
    why = (
        f"greedy token {first} is {gaps[first]:.2g} nats below the likeliest of the same weights: decoding "
        "step by step computes something else than the whole text at once"
    )
    return replace(ran, status="differs", why=why)


def _between(subject: Subject, opened: dict[str, Opened], first: Ran, second: Ran) -> Between | None:
    a, b = (opened[ran.name] for ran in (first, second))
    if not all((each.folder / "logits.f32").is_file() for each in (a, b)):
        return None
    kept: list[np.ndarray] = []
    a.logits(subject.rows, 0, lambda row, begin, logits: kept.append(np.array(logits)))
    found = Comparison(np.stack(kept), min(a.vocabulary, b.vocabulary))
    try:
        b.logits(subject.rows, 0, found.add)
    except StepFailed:
        return None
    same = 0
    while same < min(len(first.ids), len(second.ids)) and first.ids[same] == second.ids[same]:
        same += 1
    return Between(first.name, second.name, found.kl_mean, found.top1, same)


def _agreeing(ran: Ran, between: Sequence[Between]) -> Ran:
    """Where no reader of ours says what is right, programs are held against one another."""
    mine = [each for each in between if ran.name in (each.first, each.second)]
    if ran.status != "ran" or not mine:
        return ran
    worst = max(mine, key=lambda each: each.kl)
    if worst.kl <= KL_BETWEEN:
        return replace(ran, status="agrees")
    other = worst.second if worst.first == ran.name else worst.first
    return replace(ran, status="differs", why=f"{worst.kl:.2g} nats from {other} ({KL_BETWEEN:g} allowed)")


def _distance(kept: np.ndarray, other: np.ndarray) -> Comparison:
    found = Comparison(kept, min(kept.shape[-1], other.shape[-1]))
    for row, logits in enumerate(other):
        found.add(row, 0, logits)
    return found
