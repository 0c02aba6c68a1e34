"""What ``quantwright eval`` and ``evals.evaluate`` do: everything resolved and checked, then one
``Evaluation``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.evaluation import Evaluation, Outcome
from evals.measuring import Measuring
from evals.options import METRICS, EvalOptions
from evals.subjects import resolve
from quantize.errors import BadInput
from quantize.methods.registry import parse_recipe
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.sources.gguf_repository import expand
from quantize.staging import claim_run
from quantize.terminal import log


def evaluate(
    artifacts: Sequence[str | Path],
    options: EvalOptions | None = None,
    run: RunOptions | None = None,
    out: Path | str | None = None,
    say: Callable[[str], None] = log,
    **keywords: Any,
) -> list[EvalResult]:
    """Rows of ``measure``: one per metric, protocol (or task) and artifact, in the order given.

    ``keywords``: fields of ``EvalOptions``, where it is not given itself: ``text=..., metrics=[...]``.

    Errors: BadInput; StepFailed, after all artifacts were tried, where one of them could not be measured.
    """
    if options is None:
        options = EvalOptions.of(**keywords)
    elif keywords:
        raise BadInput(f"evaluate: give options or {', '.join(keywords)}, not both")
    outcome = measure(artifacts, options, run, out, say)
    raise_failure(outcome)
    return outcome.results


def raise_failure(outcome: Outcome) -> None:
    """Errors: the first failure's own kind, where an artifact could not be measured."""
    if outcome.failures:
        name, error = outcome.failures[0]
        more = f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else ""
        text = str(error) if str(error).startswith(name) else f"{name}: {error}"
        raise type(error)(text + more) from error


def measure(
    artifacts: Sequence[str | Path],
    options: EvalOptions,
    run: RunOptions | None = None,
    out: Path | str | None = None,
    say: Callable[[str], None] = log,
) -> Outcome:
    """Measure ``artifacts``: artifact folders, .gguf files, Hugging Face folders or Hub ids; files of a GGUF
    repository (``org/name:Q4_K_M``), or all of them (``org/name:*``). ``out``: a run folder to which the rows
    are written too, as ``out/results/*.json``.

    Without ``options.reference`` divergence is from the source that the manifests name, else from the largest
    of several artifacts; without ``options.cache`` or ``out`` the reference's logits are thrown away.

    What fails costs its artifact's rows, not the others'. Errors: BadInput where something given cannot be
    used.
    """
    run = run or RunOptions()
    names = [one for name in artifacts for one in expand(str(name))]
    if len(set(names)) < len(names):
        raise BadInput("eval: an artifact is listed twice")
    for folder in (out, options.cache):
        if folder:
            claim_run(Path(folder))
    load_as = parse_recipe(options.load_as) if options.load_as else None
    found = [resolve(name, load_as, run.trust_remote_code) for name in names]
    reference = resolve(options.reference, code=run.trust_remote_code) if options.reference else None
    metrics = choose_metrics(options, bool(reference) or len(names) > len(artifacts))
    cache = Path(options.cache) if options.cache else Path(out) / "cache" if out else None
    measuring = Measuring(options, metrics, run, cache, say, reference)
    return Evaluation(found, measuring, Path(out) if out else None).measure()


def choose_metrics(options: EvalOptions, with_reference: bool) -> tuple[str, ...]:
    """Where none are named: perplexity, with a reference divergence too, with only tasks or generations
    neither."""
    if options.metrics is None:
        something_else = options.tasks or options.prompts or options.generate
        if something_else and options.text is None and not with_reference:
            return ()
        return METRICS if with_reference else METRICS[:1]
    return tuple(metric for metric in METRICS if metric in options.metrics)
