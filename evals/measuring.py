"""How every model of one call is measured, the reference and the artifacts alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.divergence import Divergences
from evals.environment import environment
from evals.generations import TOKENS, generation_items, generation_row, prompts_from, read_prompts
from evals.keeping import Kept
from evals.options import EvalOptions
from evals.perplexity import TokenScores, score
from evals.protocols import parse_protocol
from evals.rows import Heading, divergence_rows, perplexity_rows
from evals.subjects import Typed
from evals.task_files import Task, parse_tasks
from evals.tasks import run_tasks
from evals.text import MeasuredText
from evals.windows import Windows
from quantize.progress import progress_bar
from quantize.recipe import RunOptions
from quantize.results import EvalResult
from quantize.runtimes.base import Runtime


@dataclass
class Measuring:
    """``read`` opens the text, the prompts and the tasks that the options name; what it leaves empty is not
    measured."""

    options: EvalOptions
    metrics: tuple[str, ...]
    run: RunOptions
    cache: Path | None
    say: Callable[[str], None]
    reference: Typed | None = None
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.options
        self.protocols = [parse_protocol(name) for name in options.protocols]
        self.prompts = (
            read_prompts(Path(options.prompts)) if isinstance(options.prompts, str) else options.prompts or []
        )
        self.generate = options.generate or (TOKENS if options.prompts else 0)  # tokens; 0: nothing
        self.environment: dict[str, Any] = environment(self.run.resolved_threads)
        if options.tokens is not None:
            self.environment["tokens_limit"] = options.tokens

    @property
    def diverges(self) -> bool:
        return "divergence" in self.metrics

    def read(self, artifacts: Sequence[Typed]) -> None:
        """Errors: BadInput for whatever is not there or malformed."""
        options = self.options
        self.text = MeasuredText(artifacts, self.reference, options.ids, options.tokens, self.cache, self.say)
        if self.metrics or (self.generate and not self.prompts):
            self.environment["text"] = self.text.read(options.text)
        if self.generate and not self.prompts:
            self.prompts = prompts_from(self.text.body)
        if options.tasks:
            allowed = options.allow_code_execution, options.allow_task_code
            self.tasks = parse_tasks(options.tasks, self.say, *allowed, self.run.scratch)

    def score(self, runtime: Runtime, windows: Windows, name: str) -> TokenScores:
        with progress_bar(
            f"{name} {windows.protocol.name}", windows.scored, "tokens", self.run.progress
        ) as advance:
            return score(runtime, windows, advance, self.run.resolved_threads)

    def text_rows(self, divergences: Divergences, windows: Windows, heading: Heading) -> list[EvalResult]:
        rows = []
        if "perplexity" in self.metrics:
            rows += perplexity_rows(TokenScores(divergences.candidate, windows.offsets), windows, heading)
        return rows + divergence_rows(divergences, windows, heading)

    def task_rows(self, typed: Typed, runtime: Runtime, heading: Heading) -> list[EvalResult]:
        if not self.tasks:
            return []
        return run_tasks(
            runtime,
            self.tasks,
            self.text.tokenizer(typed),
            heading,
            self.options,
            self.run.progress,
            self.text.special(typed),
            typed.gguf or typed.path,
        )

    def generation_rows(
        self, typed: Typed, runtime: Runtime, heading: Heading, kept: Kept | None = None
    ) -> list[EvalResult]:
        if not self.generate:
            return []
        source, ends = self.text.tokenizer(typed), self.text.special(typed).ends
        items = kept.read() if kept else None
        if items is None:
            items = generation_items(runtime, self.prompts, self.generate, source, ends)
            if kept:
                kept.write(items)
        return [generation_row(items, self.generate, "source" if source else "runtime", heading)]

    def heading(self, typed: Typed, runtime: Runtime, role: str) -> Heading:
        described = runtime.describe()
        backend = str(described.get("backend", runtime.name))
        environment = self.environment | {"runtime": described}
        if self.reference and not typed.same_as(self.reference):
            environment["reference"] = self.reference.name
            environment["reference_digest"] = self.reference.digest
        if typed.load_as:
            environment["load_as"] = typed.load_as.short or typed.load_as.method
        return Heading(typed.name, typed.digest, backend, environment, role)
