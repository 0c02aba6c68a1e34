"""What ``quantwright eval`` and ``evals.evaluate`` do: everything resolved and checked, then one
``Evaluation``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.evaluation import METRICS, Evaluation, Outcome
from evals.generations import TOKENS, read_prompts
from evals.protocols import parse_protocol
from evals.subjects import resolve
from evals.tasks import TaskOptions
from quantize.errors import BadInput
from quantize.methods.registry import parse_recipe
from quantize.recipe import Recipe, RunOptions
from quantize.results import EvalResult
from quantize.sources.gguf_repository import expand
from quantize.staging import claim_run
from quantize.terminal import log

DEFAULT_PROTOCOL = "llamacpp-512"
DEFAULT_CACHE_LIMIT = 4 << 30


def evaluate(artifacts: Sequence[str | Path], **options: Any) -> list[EvalResult]:
    """Rows of ``measure``: one per metric, protocol (or task) and artifact, in the order given; the options
    are its options.

    Errors: BadInput; StepFailed, after all artifacts were tried, where one of them could not be measured.
    """
    outcome = measure(artifacts, **options)
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
    *,
    reference: str | Path | None = None,
    text: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    protocol: str | Sequence[str] = DEFAULT_PROTOCOL,
    ids: str = "source",
    tasks: Sequence[str | Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    chat_template: str | None = None,
    allow_code_execution: bool = False,
    allow_task_code: bool = False,
    prompts: str | Path | Sequence[str] | None = None,
    generate: int | None = None,
    tokens: int | None = None,
    load_as: str | Recipe | None = None,
    run: RunOptions | None = None,
    out: Path | str | None = None,
    cache_limit: int = DEFAULT_CACHE_LIMIT,
    cache: Path | str | None = None,
    floors: bool = True,
    weights_only: str = "sample",
    prune: bool = False,
    runtime: str = "",
    say: Callable[[str], None] = log,
) -> Outcome:
    """Measure ``artifacts``: artifact folders, .gguf files, Hugging Face folders or Hub ids; files of a GGUF
    repository (``org/name:Q4_K_M``), or all of them (``org/name:*``).

    ``metrics``: of ``perplexity`` and ``divergence`` (which needs a reference: the one given, or the source
    that the manifests name, else the largest of several artifacts); default: perplexity, with a reference
    both, with ``tasks`` alone neither. ``text``: a UTF-8 file; without one the demo's held-out text.
    ``tokens``: only so many of its tokens. ``limit`` (items of each task), ``num_fewshot``,
    ``apply_chat_template``: as lm-eval's. ``chat_template``: the name of the one to apply, where the model
    has several. ``allow_code_execution``: tasks may run what a model writes, ``allow_task_code``: and Python
    that a YAML task names. ``out``: a run folder to which the rows are written too, as
    ``out/results/*.json``. ``prompts``: a file of them, or the prompts, which every artifact continues by
    ``generate`` tokens; with ``generate`` alone they are cut from the text. ``cache``: where the reference's
    logits are kept for the next call (default: ``out/cache``; without either they are thrown away).
    ``floors``: with divergence, add the rows below which it means nothing. ``weights_only``: on how much of
    the text a GGUF's weights are measured in the reference's runtime too: ``sample`` (one window in 80),
    ``full`` or ``none``. ``prune``: delete each file of a GGUF repository fetched for this, before the next
    is. ``runtime``: ``vllm`` measures the artifacts in vLLM, without divergence.

    What fails costs its artifact's rows, not the others'. Errors: BadInput where something given cannot be
    used.
    """
    run = run or RunOptions()
    names = [one for name in artifacts for one in expand(str(name))]
    if len(set(names)) < len(names):
        raise BadInput("eval: an artifact is listed twice")
    for folder in (out, cache):
        if folder:
            claim_run(Path(folder))
    whole_repository = len(names) > len(artifacts)
    return Evaluation(
        artifacts=[
            resolve(name, parse_recipe(load_as) if load_as else None, run.trust_remote_code) for name in names
        ],
        reference=resolve(reference, code=run.trust_remote_code) if reference else None,
        text=text,
        metrics=choose_metrics(
            metrics, bool(reference) or whole_repository, text, bool(tasks or prompts or generate)
        ),
        protocols=[parse_protocol(name) for name in ([protocol] if isinstance(protocol, str) else protocol)],
        ids=ids,
        tasks=[str(task) for task in tasks],
        task_options=TaskOptions(
            limit,
            num_fewshot,
            apply_chat_template or bool(chat_template),
            chat_template or "",
            allow_code_execution,
            allow_task_code,
        ),
        prompts=read_prompts(Path(prompts)) if isinstance(prompts, (str, Path)) else list(prompts or ()),
        generate=generate or (TOKENS if prompts else 0),
        tokens=tokens,
        run=run,
        out=Path(out) if out else None,
        cache_limit=cache_limit,
        cache=Path(cache) if cache else Path(out) / "cache" if out else None,
        floors=floors,
        weights_only=weights_only,
        prune=prune,
        runtime=runtime,
        say=say,
    ).measure()


def choose_metrics(
    metrics: Sequence[str] | None, with_reference: bool, text: str | Path | None, something_else: bool
) -> tuple[str, ...]:
    """``something_else``: tasks or generations are asked for, so that perplexity need not be."""
    if metrics is None:
        if something_else and text is None and not with_reference:
            return ()
        return METRICS if with_reference else ("perplexity",)
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        import difflib

        close = difflib.get_close_matches(unknown[0], METRICS, n=1, cutoff=0.4)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise BadInput(f"unknown metric {unknown[0]!r}{hint}; known: {', '.join(METRICS)}")
    return tuple(m for m in METRICS if m in metrics)
