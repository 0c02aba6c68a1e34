"""Task accuracy through lm-eval, for whatever a runtime opens: rows with each item's outcome, for paired
tests."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evals.code_execution import code_eval_at_hand
from evals.local_task import LocalTask
from evals.options import EvalSettings
from evals.rows import Heading
from evals.special import SpecialIds
from evals.task_code import no_task_code
from evals.task_files import HarnessTask, Task, task_manager
from evals.task_rows import task_rows
from quantize.chat.templates import folder_template
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, QuantwrightError, StepFailed, first_line
from quantize.gguf.tokenizer.chat_templates import gguf_template
from quantize.progress import progress_bars
from quantize.results import EvalResult
from quantize.runtimes.base import Runtime

BOOTSTRAP_ITERATIONS = 1000


def run_tasks(
    runtime: Runtime,
    tasks: Sequence[Task],
    source: SourceTokenizer | None,
    heading: Heading,
    options: EvalSettings,
    progress: bool,
    special: SpecialIds,
    own: Path | None = None,
) -> list[EvalResult]:
    """One row per task and metric of lm-eval's; of a group that lm-eval averages, only the average, its tasks
    in ``detail``.

    ``own``: the artifact's GGUF file or folder, whose chat template counts where the source's tokenizer was
    not found.

    Errors: StepFailed where lm-eval fails on a task, with its reason; BadInput where a chat template is
    wanted and there is none.
    """
    from evals.harness import RuntimeLM

    template = None
    if options.uses_chat_template:
        folder = source.folder if source else own
        if folder is None:
            raise BadInput("--apply-chat-template needs the source's tokenizer; give --reference MODEL")
        template = (gguf_template if folder.is_file() else folder_template)(
            folder, options.chat_template or ""
        )
    rows: list[EvalResult] = []
    for task in tasks:
        if isinstance(task, LocalTask) and (options.num_fewshot or 0) >= len(task.items):
            raise BadInput(
                f"--num-fewshot {options.num_fewshot}: {task.name} has {len(task.items)} items, "
                f"and an item is never its own example; ask for at most {len(task.items) - 1}"
            )
        with progress_bars(f"{heading.artifact} {Path(task.name).stem}", progress) as advance:
            model = RuntimeLM(runtime, source, special, advance=advance, template=template)
            if options.allow_task_code and isinstance(task, HarnessTask) and task.is_file:
                model.remarks.add("the Python that its file names was allowed to run")
            outcome = _outcome(model, task, options)
            rows += task_rows(outcome, model, task, heading, options, "source" if source else "runtime")
    return rows


def _outcome(model: Any, task: Task, options: EvalSettings) -> dict[str, Any]:
    """What lm-eval returns. Errors: StepFailed where it fails."""
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate

    local = isinstance(task, HarnessTask) and task.is_file
    known = (ValueError, KeyError, AssertionError, TypeError, TemplateError)
    failures = (Exception,) if local else known  # a file of anybody's may be wrong in any way
    with _quiet(), np.errstate(invalid="ignore"):  # likelihoods of zero, of logits that are not finite
        try:
            code_eval = code_eval_at_hand() if options.allow_code_execution else contextlib.nullcontext()
            with code_eval, no_task_code(task.name, options.allow_task_code, local):
                outcome: dict[str, Any] = simple_evaluate(
                    model=model,
                    tasks=[task.lm_eval_config() if isinstance(task, LocalTask) else task.name],
                    num_fewshot=options.num_fewshot,
                    limit=options.limit,
                    bootstrap_iters=BOOTSTRAP_ITERATIONS,
                    task_manager=task_manager(False) if isinstance(task, LocalTask) else task.manager,
                    apply_chat_template=options.uses_chat_template,
                    confirm_run_unsafe_code=options.allow_code_execution,
                )
        except QuantwrightError:
            raise
        except (OSError, ConnectionError) as error:
            raise StepFailed(
                f"task {task.name}: its data cannot be fetched "
                f"({first_line(error)}); connect, or use a local file"
            ) from error
        except failures as error:
            raise StepFailed(
                f"task {task.name}: lm-eval failed: {type(error).__name__}: {first_line(error)}"
            ) from error
    return outcome


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets log much that is not for this program's user."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    import datasets

    shown = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints; stdout is for results
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
