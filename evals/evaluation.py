"""Quality of any number of artifacts on the same token ids: perplexity, divergence from a reference, task
accuracy.

The reference runs once; its logits are kept compactly on disk (or, where that takes more than
``cache_limit``, it runs beside each candidate). Then the artifacts are opened one at a time.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evals.divergence import Divergences, compare, divergences_from_itself
from evals.environment import environment
from evals.generations import generation_items, generation_row, prompts_from
from evals.keeping import Keeper, Kept
from evals.perplexity import TokenScores, score
from evals.progress import progress_bar
from evals.protocols import TextProtocol, Windows
from evals.reference import CachedReference, ReferenceRows, SideBySideReference
from evals.rows import Heading, divergence_rows, perplexity_rows, unavailable_row
from evals.subjects import Typed, guess_reference, largest
from evals.tasks import TaskOptions
from evals.text import MeasuredText
from evals.weights_only import HOW_MUCH, Measured, weights_only_rows
from quantize.errors import BadInput, QuantwrightError, StepFailed, one_line
from quantize.recipe import RunOptions
from quantize.results import EvalResult, Subject, merge_results, results_path
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime

METRICS = ("perplexity", "divergence")


@dataclass
class Outcome:
    """Rows of the artifacts in the order they were given; what failed, with its reason; rows of what nobody
    listed."""

    results: list[EvalResult] = field(default_factory=list)
    failures: list[tuple[str, QuantwrightError]] = field(default_factory=list)
    unlisted: list[EvalResult] = field(default_factory=list)


@dataclass
class Evaluation:
    """One call of ``evaluate``, with everything resolved."""

    artifacts: list[Typed]
    reference: Typed | None
    text: str | Path | None
    metrics: tuple[str, ...]
    protocols: list[TextProtocol]
    ids: str
    tasks: list[str]
    task_options: TaskOptions
    prompts: list[str]
    generate: int  # tokens; 0: nothing is generated
    tokens: int | None
    run: RunOptions
    out: Path | None
    cache_limit: int
    cache: Path | None
    floors: bool
    weights_only: str
    prune: bool
    runtime: str  # of the artifacts; the reference keeps to its own, which gives logits
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise BadInput("nothing to evaluate: give at least one artifact or model")
        if self.ids not in ("source", "runtime"):
            raise BadInput(f"--ids {self.ids!r}: expected source or runtime")
        if self.weights_only not in HOW_MUCH:
            raise BadInput(f"--weights-only {self.weights_only!r}: expected {', '.join(HOW_MUCH)}")
        self.environment = environment(self.run.resolved_threads)
        if self.tokens is not None:
            self.environment["tokens_limit"] = self.tokens
        self.reference_rows: dict[str, ReferenceRows] = {}
        self.reference_ids: dict[str, str] = {}
        self.reference_results: list[EvalResult] = []
        self._reference_runtime: Runtime | None = None

    def measure(self) -> Outcome:
        outcome = Outcome()
        if "divergence" in self.metrics and self.reference is None:
            self._choose_reference()
        self.measured = MeasuredText(
            self.artifacts, self.reference, self.ids, self.tokens, self.cache, self.say
        )
        if self.metrics or (self.generate and not self.prompts):
            self.environment["text"] = self.measured.read(self.text)
        if self.generate and not self.prompts:
            self.prompts = prompts_from(self.measured.body)
        parsed_tasks = self._parse_tasks()
        for typed in [
            *self.artifacts,
            *([self.reference] if self.reference not in self.artifacts and self.reference else []),
        ]:
            for note in typed.notes:
                self.say(f"{typed.name}: {note['what']} ({note['why']})")
        try:
            if self.reference and self.metrics:
                self._run_reference(parsed_tasks, outcome)
            for typed in self.artifacts:
                try:
                    typed.fetch()
                    self._one(typed, parsed_tasks, outcome)
                except QuantwrightError as error:
                    self._failed(typed, error, outcome)
                except (
                    Exception
                ) as error:  # a library's own, or a bug of ours: the others are measured all the same
                    self.say(traceback.format_exc())
                    self._failed(typed, StepFailed(one_line(error)), outcome)
                if self.prune and not typed.same_as(self.reference):
                    typed.prune(self.say)
            self._pair_tasks(outcome)
        finally:
            self._close_reference()
            if self.prune and self.reference:
                self.reference.prune(self.say)
        return outcome

    def _choose_reference(self) -> None:
        self.reference = guess_reference(self.artifacts, self.say)
        why = "the source of what is measured"
        if self.reference is None and len(self.artifacts) > 1:
            self.reference = largest(self.artifacts)
            why = self.environment["reference_why"] = (
                "the largest of what was measured, since no source was named or is at hand"
            )
        if self.reference is None:
            raise BadInput(
                "divergence needs the model to diverge from: give --reference MODEL (the artifacts' source "
                "is not at hand)"
            )
        self.say(f"reference: {self.reference.name}, {why}")

    # -- reference
    # --------------------------------------------------------------------------------------------------------

    def _run_reference(self, tasks: Any, outcome: Outcome) -> None:
        """Run the reference once: its logits kept, or the runtime kept open; its own rows made on the way."""
        assert self.reference is not None
        listed = any(self.reference.same_as(a) for a in self.artifacts)
        self.reference.fetch()
        if not (
            listed or self.generate or "divergence" in self.metrics
        ):  # nothing is asked of it but its name
            self._write_reference(outcome)
            return
        keeper = Keeper(self.cache, self.cache_limit, self.reference.digest, self.say)
        self._reference_runtime = runtime = self._open_reference(keeper, listed)
        heading = self._heading(self.reference, runtime, "reference")
        for protocol in self.protocols:
            windows = self.measured.windows(protocol, runtime, self.reference)
            if "divergence" not in self.metrics:
                if listed:
                    scores = self._score(runtime, windows, self.reference.name)
                    self.reference_results += perplexity_rows(scores, windows, heading)
                continue
            known = self._keep_reference(keeper, runtime, windows, listed)
            self.reference_rows[protocol.requested] = known
            self.reference_ids[protocol.requested] = windows.ids_sha256
            if listed:
                divergences = self._divergences_of_reference(known, runtime, windows)
                self.reference_results += self._text_rows(divergences, windows, heading)
            elif isinstance(known, CachedReference):
                self.reference_results += perplexity_rows(
                    TokenScores(known.true_log_probs, windows.offsets), windows, heading
                )
        if listed and tasks:
            self.reference_results += self._task_rows(self.reference, tasks, runtime, heading)
        self.reference_results += self._generation_rows(
            self.reference, runtime, heading, self._kept_generations(keeper, runtime)
        )
        if self.floors and "divergence" in self.metrics:
            from evals.floors import floor_rows

            everywhere = [
                (w, self.reference_rows[w.protocol.requested]) for w in self._reference_windows(runtime)
            ]
            kept = self._kept_floors(keeper, runtime)
            outcome.unlisted += floor_rows(self.reference, runtime, everywhere, self.run, heading, kept)
        self._write_reference(outcome)
        if not any(isinstance(rows, SideBySideReference) for rows in self.reference_rows.values()):
            self._close_reference_runtime()

    def _write_reference(self, outcome: Outcome) -> None:
        assert self.reference is not None
        if self.out:
            rows = self.reference_results + outcome.unlisted
            role = (
                "" if "reference_why" in self.environment else "reference"
            )  # the largest is an artifact like the others
            merge_results(
                results_path(self.out, self.reference.name, "eval"), self.reference.subject(role), rows
            )

    def _open_reference(self, keeper: Keeper, listed: bool) -> Runtime:
        reference, light = self.reference, None
        assert reference is not None
        if "divergence" in self.metrics and not listed:

            def others(runtime: Runtime) -> list[Kept]:
                return [
                    kept
                    for find in (self._kept_generations, self._kept_floors)
                    if (kept := find(keeper, runtime))
                ]

            light = keeper.open_light(reference.path, self.run, self._reference_windows, others)
        return light or open_runtime(reference.path, self.run)

    def _reference_windows(self, runtime: Runtime) -> list[Windows]:
        assert self.reference is not None
        return [self.measured.windows(protocol, runtime, self.reference) for protocol in self.protocols]

    def _kept_floors(self, keeper: Keeper, runtime: Runtime) -> Kept | None:
        if not self.floors:
            return None
        assert self.reference is not None
        ids = [windows.ids_sha256 for windows in self._reference_windows(runtime)]
        return keeper.other("floors", runtime, self.reference.name, ids, find_spec("llama_cpp") is not None)

    def _kept_generations(self, keeper: Keeper, runtime: Runtime) -> Kept | None:
        if not self.generate:
            return None
        assert self.reference is not None
        source = self.measured.tokenizer(self.reference)
        ids, ends = source.sha256 if source else "runtime", sorted(self.measured.special(self.reference).ends)
        return keeper.other("generations", runtime, self.prompts, self.generate, ids, ends)

    def _keep_reference(
        self, keeper: Keeper, runtime: Runtime, windows: Windows, listed: bool
    ) -> ReferenceRows:
        assert self.reference is not None
        if found := keeper.find(windows, runtime):
            self.say(f"{windows.protocol.name}: the reference's logits are at hand ({found.folder})")
            return found
        with progress_bar(
            f"{self.reference.name} {windows.protocol.name}", windows.scored, self.run.progress
        ) as advance:
            return keeper.keep(windows, runtime, listed, advance)

    def _divergences_of_reference(
        self, known: ReferenceRows, runtime: Runtime, windows: Windows
    ) -> Divergences:
        found = divergences_from_itself(known, windows) if isinstance(known, CachedReference) else None
        if found is not None:
            return found
        assert self.reference is not None
        with progress_bar(
            f"{self.reference.name} {windows.protocol.name}", windows.scored, self.run.progress
        ) as advance:
            return compare(known, runtime, windows, advance, self.reference.name)

    def _close_reference(self) -> None:
        for rows in self.reference_rows.values():
            if isinstance(rows, CachedReference):
                rows.close()
        self._close_reference_runtime()

    def _close_reference_runtime(self) -> None:
        if self._reference_runtime is not None:
            self._reference_runtime.close()
            self._reference_runtime = None

    # -- one artifact
    # --------------------------------------------------------------------------------------------------------

    def _one(self, typed: Typed, tasks: Any, outcome: Outcome) -> None:
        if self.metrics and typed.same_as(self.reference) and not self.runtime:
            outcome.results += [replace(row, artifact=typed.name) for row in self.reference_results]
            return
        rows: list[EvalResult] = []
        measured: list[Measured] = []
        with open_runtime(typed.path, self.run, load_as=typed.load_as, runtime=self.runtime) as runtime:
            heading = self._heading(
                typed, runtime, "reference" if typed.same_as(self.reference) and not self.runtime else ""
            )
            for protocol in self.protocols if self.metrics else ():
                rows += self._measure_text(typed, protocol, runtime, heading, measured)
            if tasks:
                rows += self._task_rows(typed, tasks, runtime, heading)
            rows += self._generation_rows(typed, runtime, heading)
        if typed.gguf and self.weights_only != "none":
            rows += weights_only_rows(
                typed, self.reference, measured, self.weights_only, self.run, heading, self.say
            )
        outcome.results += rows
        if self.out:
            merge_results(
                results_path(self.out, self._result_name(typed), "eval"), typed.subject(heading.role), rows
            )

    def _measure_text(
        self,
        typed: Typed,
        protocol: TextProtocol,
        runtime: Runtime,
        heading: Heading,
        measured: list[Measured],
    ) -> list[EvalResult]:
        """``measured`` gets what was compared with the reference on the source's ids."""
        windows = self.measured.windows(protocol, runtime, typed)
        known = self.reference_rows.get(protocol.requested)
        if known is None or not runtime.gives_logits:
            rows = perplexity_rows(self._score(runtime, windows, typed.name), windows, heading)
            if known is None:
                return rows
            why = (
                f"{runtime.name} gives the log-probabilities of the text's own tokens only: no divergence "
                "can be measured in it"
            )
            return [*rows, unavailable_row(why, windows, heading)]
        if self.reference_ids[protocol.requested] != windows.ids_sha256:
            raise BadInput(
                "its runtime's own token ids differ from the reference's, so no token can be compared; use "
                "--ids source"
            )
        with progress_bar(
            f"{typed.name} {windows.protocol.name}", windows.scored, self.run.progress
        ) as advance:
            divergences = compare(known, runtime, windows, advance, typed.name)
        if windows.ids == "source":
            measured.append(Measured(windows, known, divergences))
        return self._text_rows(divergences, windows, heading)

    def _text_rows(self, divergences: Divergences, windows: Windows, heading: Heading) -> list[EvalResult]:
        rows = []
        if "perplexity" in self.metrics:
            rows += perplexity_rows(TokenScores(divergences.candidate, windows.offsets), windows, heading)
        return rows + divergence_rows(divergences, windows, heading)

    def _task_rows(self, typed: Typed, tasks: Any, runtime: Runtime, heading: Heading) -> list[EvalResult]:
        from evals.tasks import run_tasks

        source, special = self.measured.tokenizer(typed), self.measured.special(typed)
        return run_tasks(
            runtime,
            tasks,
            source,
            heading,
            self.task_options,
            self.run.progress,
            special,
            typed.gguf or typed.path,
        )

    def _generation_rows(
        self, typed: Typed, runtime: Runtime, heading: Heading, kept: Kept | None = None
    ) -> list[EvalResult]:
        if not self.generate:
            return []
        source, ends = self.measured.tokenizer(typed), self.measured.special(typed).ends
        items = kept.read() if kept else None
        if items is None:
            items = generation_items(runtime, self.prompts, self.generate, source, ends)
            if kept:
                kept.write(items)
        return [generation_row(items, self.generate, "source" if source else "runtime", heading)]

    def _score(self, runtime: Runtime, windows: Windows, name: str) -> TokenScores:
        with progress_bar(f"{name} {windows.protocol.name}", windows.scored, self.run.progress) as advance:
            return score(runtime, windows, advance, self.run.resolved_threads)

    def _heading(self, typed: Typed, runtime: Runtime, role: str) -> Heading:
        described = runtime.describe()
        backend = str(described.get("backend", runtime.name))
        environment = self.environment | {"runtime": described}
        if self.reference and not typed.same_as(self.reference):
            environment["reference"] = self.reference.name
            environment["reference_digest"] = self.reference.digest
        if typed.load_as:
            environment["load_as"] = typed.load_as.short or typed.load_as.method
        return Heading(typed.name, typed.digest, backend, environment, role)

    def _result_name(self, typed: Typed) -> str:
        return f"{typed.name}-as-{typed.load_as.short}" if typed.load_as else typed.name

    def _failed(self, typed: Typed, error: QuantwrightError, outcome: Outcome) -> None:
        outcome.failures.append((typed.name, error))
        if len(self.artifacts) > 1:
            self.say(f"failed: {typed.name}: {error}")
        if not self.out:
            return
        try:
            subject = typed.subject()
        except QuantwrightError:
            subject = Subject(name=typed.name, recipe=typed.path.name)
        subject = replace(
            subject, status="unsupported" if error.exit_code == 2 else "failed", reason=str(error)
        )
        merge_results(results_path(self.out, self._result_name(typed), "eval"), subject, [])

    # -- tasks
    # --------------------------------------------------------------------------------------------------------

    def _parse_tasks(self) -> Any:
        if not self.tasks:
            return []
        from evals.task_files import parse_tasks

        options = self.task_options
        return parse_tasks(self.tasks, self.say, options.allow_code, options.allow_task_code)

    def _pair_tasks(self, outcome: Outcome) -> None:
        if self.tasks and self.reference:
            from evals.tasks import pair_with_reference

            outcome.results = pair_with_reference(outcome.results)
