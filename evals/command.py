"""``quantwright eval``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.commands.options import run_options
from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.terminal import console, emit_json
from quantize.units import parse_size

if TYPE_CHECKING:
    from quantize.results import EvalResult

TABLE_METRICS = (
    "perplexity",
    "word_perplexity",
    "bits_per_byte",
    "kl_mean",
    "kl_p99",
    "top1_agreement",
    "ppl_ratio",
    "delta_p_rms",
)


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option(
    "--reference",
    help="the model to diverge from: folder, .gguf or Hub id (default: the source, where it is at hand, "
    "else the largest)",
)
@click.option("--text", help="UTF-8 text file to measure on (default: the demo's held-out text)")
@click.option(
    "--metrics", help="perplexity,divergence (default: both where there is a reference, else perplexity)"
)
@click.option(
    "--protocol",
    default="llamacpp-512",
    show_default=True,
    help="how perplexity is taken, several with commas: llamacpp-N, gptq-N, lmeval-wikitext, "
    "strided-N-STRIDE, exl3-N",
)
@click.option(
    "--ids",
    type=click.Choice(["source", "runtime"]),
    default="source",
    show_default=True,
    help="whose tokenizer makes the token ids: the source's own file, or each runtime's",
)
@click.option(
    "--tasks",
    help="with commas: lm-eval names, NAME=FILE or FOLDER (its data), .jsonl or .yaml files, held-out, or "
    "suites: quick, "
    "open-llm, chinese, code",
)
@click.option("--limit", type=click.IntRange(min=1), help="items of each task")
@click.option(
    "--num-fewshot", type=click.IntRange(min=0), help="examples before each item (default: as the task says)"
)
@click.option("--apply-chat-template", is_flag=True, help="put items into the model's chat template")
@click.option(
    "--chat-template", metavar="NAME", help="that one of its chat templates, where the model has several"
)
@click.option(
    "--allow-code-execution", is_flag=True, help="let tasks run the code that a model writes, on this machine"
)
@click.option(
    "--allow-task-code",
    is_flag=True,
    help="let YAML tasks run Python that they name (!function), and scripts of metrics",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="file of prompts to continue: a line each, or .jsonl",
)
@click.option(
    "--generate",
    type=click.IntRange(min=1),
    help="tokens to continue prompts by (default: 64; prompts: cut from the text)",
)
@click.option("--tokens", type=click.IntRange(min=1), help="only so many tokens of the text")
@click.option("--load-as", help="quantize the model on the fly (quanto and bnb recipes)")
@click.option(
    "--cache-limit",
    default="4GiB",
    show_default=True,
    help="disk space for the reference's logits; beyond, it runs again",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="where those are kept (default: OUT/cache)",
)
@click.option(
    "--floors/--no-floors",
    default=True,
    show_default=True,
    help="with divergence, rows that show below what it means nothing: the reference in another dtype, and "
    "in llama.cpp",
)
@click.option(
    "--weights-only",
    type=click.Choice(["sample", "full", "none"]),
    default="sample",
    show_default=True,
    help="measure a GGUF's weights in the reference's runtime too, beside llama.cpp: on one chunk in 80, on "
    "all, or not",
)
@click.option(
    "--runtime",
    type=click.Choice(["vllm"]),
    help="measure the artifacts in vLLM: perplexity and tasks, no divergence",
)
@click.option(
    "--prune", is_flag=True, help="delete each file fetched of a GGUF repository before the next is fetched"
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="run folder; results go to OUT/results",
)
@run_options
def evaluate(
    artifacts: tuple[str, ...],
    reference: str | None,
    text: str | None,
    metrics: str | None,
    protocol: str,
    ids: str,
    tasks: str | None,
    limit: int | None,
    num_fewshot: int | None,
    apply_chat_template: bool,
    chat_template: str | None,
    allow_code_execution: bool,
    allow_task_code: bool,
    prompts: Path | None,
    generate: int | None,
    tokens: int | None,
    load_as: str | None,
    cache_limit: str,
    cache: Path | None,
    floors: bool,
    weights_only: str,
    runtime: str | None,
    prune: bool,
    out: Path | None,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Measure the quality of ARTIFACT...: artifact folders, .gguf files, Hugging Face folders or Hub ids, or
    files of a GGUF repository: org/name:Q4_K_M, or all of them, org/name:*.

    Perplexity by a named protocol, divergence from a reference on the same token ids, and accuracy on tasks.
    """
    from evals.measure import measure, raise_failure

    outcome = measure(
        artifacts,
        reference=reference,
        text=text,
        metrics=_names(metrics, "--metrics") if metrics is not None else None,
        protocol=_names(protocol, "--protocol"),
        ids=ids,
        tasks=_names(tasks, "--tasks") if tasks is not None else (),
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        chat_template=chat_template,
        allow_code_execution=allow_code_execution,
        allow_task_code=allow_task_code,
        prompts=prompts,
        generate=generate,
        tokens=tokens,
        load_as=load_as,
        run=run,
        out=out,
        cache_limit=parse_size(cache_limit),
        cache=cache,
        floors=floors,
        weights_only=weights_only,
        prune=prune,
        runtime=runtime or "",
    )
    rows = outcome.results + [row for row in outcome.unlisted if row.role == "floor"]
    if rows:
        _table(rows)
    if as_json:
        emit_json([row.to_json() for row in rows])
    raise_failure(outcome)


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadInput(f"{option} {text!r}: expected at least one name")
    return names


def _table(rows: "list[EvalResult]") -> None:
    """One line per artifact and protocol (or task), the figures with their 95 % interval."""
    from rich.table import Table

    text_rows = [row for row in rows if not row.task and row.metric != "generations"]
    out = console(width=240)
    if text_rows:
        metrics = [m for m in TABLE_METRICS if any(row.metric == m for row in text_rows)]
        table = Table(
            title="perplexity and divergence", caption="± half the 95 % interval (chunks resampled)"
        )
        for column in ("artifact", "protocol", "ids", *metrics, "n", "excluded"):
            table.add_column(column, justify="left" if column in ("artifact", "protocol", "ids") else "right")
        for key in dict.fromkeys((row.artifact, row.protocol, row.role) for row in text_rows):
            mine = [row for row in text_rows if (row.artifact, row.protocol, row.role) == key]
            cells = {row.metric: _figure(row) for row in mine}
            name = key[0] + (f" ({key[2]})" if key[2] else "")
            table.add_row(
                name,
                key[1],
                mine[0].ids,
                *(cells.get(m, "") for m in metrics),
                str(mine[0].n),
                str(mine[0].excluded),
            )
        out.print(table)
    task_rows = [row for row in rows if row.task]
    if task_rows:
        table = Table(title="tasks", caption="± half the 95 % interval")
        for column in ("artifact", "task", "metric", "value", "n"):
            table.add_column(column, justify="right" if column in ("value", "n") else "left")
        for row in task_rows:
            by = row.protocol_parameters.get("filter")
            metric = f"{row.metric} ({by})" if by else row.metric
            table.add_row(row.artifact, row.task, metric, _figure(row), str(row.n))
        out.print(table)


def _figure(row: "EvalResult") -> str:
    if row.value is None:
        return "n/a"
    if not row.interval:
        return f"{row.value:.5g}"
    return f"{row.value:.5g} ±{(row.interval[1] - row.interval[0]) / 2:.2g}"
