"""Quality of any number of artifacts on the same token ids: perplexity, divergence from a reference, task
accuracy.

The reference runs once; its logits are kept compactly on disk (or, where that takes more than
``cache_limit``, it runs beside each candidate). Then the artifacts are opened one at a time.
"""

import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

from evals.divergence import compare
from evals.measuring import Measuring
from evals.protocols import TextProtocol
from evals.reference_run import ReferenceRun
from evals.rows import Heading, perplexity_rows, unavailable_row
from evals.subjects import Typed, guess_reference, largest
from evals.task_rows import pair_with_reference
from evals.weights_only import Measured, weights_only_rows
from quantize.errors import BadInput, QuantwrightError, StepFailed, one_line
from quantize.progress import progress_bar
from quantize.results import EvalResult, Subject, merge_results, results_path
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime


@dataclass
class Outcome:
    """Rows of the artifacts in the order they were given; what failed, with its reason; rows that were not
    listed."""

    results: list[EvalResult] = field(default_factory=list)
    failures: list[tuple[str, QuantwrightError]] = field(default_factory=list)
    unlisted: list[EvalResult] = field(default_factory=list)


class Evaluation:
    """One call of ``evaluate``, with everything resolved. ``out``: the run folder that gets the rows too."""

    def __init__(self, artifacts: list[Typed], measuring: Measuring, out: Path | None):
        if not artifacts:
            raise BadInput("nothing to evaluate: give at least one artifact or model")
        self.artifacts = artifacts
        self.measuring = measuring
        self.options = measuring.options
        self.out = out
        self.say = measuring.say
        self.outcome = Outcome()
        self.known: ReferenceRun | None = None

    @property
    def reference(self) -> Typed | None:
        return self.measuring.reference

    def measure(self) -> Outcome:
        if self.measuring.diverges and self.reference is None:
            self._choose_reference()
        self.measuring.read(self.artifacts)
        others = [self.reference] if self.reference and self.reference not in self.artifacts else []
        for typed in [*self.artifacts, *others]:
            for note in typed.notes:
                self.say(f"{typed.name}: {note['what']} ({note['why']})")
        try:
            if self.reference and self.measuring.metrics:
                listed = any(self.reference.same_as(a) for a in self.artifacts)
                self.known = ReferenceRun(self.measuring, self.reference, listed, self.out)
                self.known.measure()
                self.outcome.unlisted += self.known.floors
            for typed in self.artifacts:
                self._try(typed)
                if self.options.prune and not typed.same_as(self.reference):
                    typed.prune(self.say)
            if self.options.tasks and self.reference:
                self.outcome.results = pair_with_reference(self.outcome.results)
        finally:
            if self.known:
                self.known.close()
            if self.options.prune and self.reference:
                self.reference.prune(self.say)
        return self.outcome

    def _choose_reference(self) -> None:
        reference, why = guess_reference(self.artifacts, self.say), "the source of what is measured"
        if reference is None and len(self.artifacts) > 1:
            reference = largest(self.artifacts)
            why = self.measuring.environment["reference_why"] = (
                "the largest of what was measured, since no source was named or found"
            )
        if reference is None:
            raise BadInput(
                "divergence needs a reference model: give --reference "
                "MODEL (the artifacts' source was not found)"
            )
        self.measuring.reference = reference
        self.say(f"reference: {reference.name}, {why}")

    def _try(self, typed: Typed) -> None:
        try:
            typed.fetch()
            self._one(typed)
        except QuantwrightError as error:
            self._failed(typed, error)
        except Exception as error:  # a library's own error, or a bug of ours: the others are still measured
            self.say(traceback.format_exc())
            self._failed(typed, StepFailed(one_line(error)))

    def _one(self, typed: Typed) -> None:
        how, options = self.measuring, self.options
        # In another runtime than its own the reference is an artifact like the others.
        is_reference = typed.same_as(self.reference) and not options.runtime
        if self.known and is_reference:
            self.outcome.results += [replace(row, artifact=typed.name) for row in self.known.results]
            return
        rows: list[EvalResult] = []
        measured: list[Measured] = []
        with open_runtime(
            typed.path, how.run, load_as=typed.load_as, runtime=options.runtime or ""
        ) as runtime:
            heading = how.heading(typed, runtime, "reference" if is_reference else "")
            for protocol in how.protocols if how.metrics else ():
                rows += self._measure_text(typed, protocol, runtime, heading, measured)
            rows += how.task_rows(typed, runtime, heading)
            rows += how.generation_rows(typed, runtime, heading)
        if typed.gguf and options.weights_only != "none":
            rows += weights_only_rows(
                typed, self.reference, measured, options.weights_only, how.run, heading, self.say
            )
        self.outcome.results += rows
        if self.out:
            merge_results(self._results_path(typed, self.out), typed.subject(heading.role), rows)

    def _measure_text(
        self,
        typed: Typed,
        protocol: TextProtocol,
        runtime: Runtime,
        heading: Heading,
        measured: list[Measured],
    ) -> list[EvalResult]:
        """``measured`` gets what was compared with the reference on the source's ids."""
        how = self.measuring
        windows = how.text.windows(protocol, runtime, typed)
        known = self.known.rows.get(protocol.requested) if self.known else None
        if self.known is None or known is None or not runtime.gives_logits:
            rows = perplexity_rows(how.score(runtime, windows, typed.name), windows, heading)
            if known is None:
                return rows
            why = (
                f"{runtime.name} returns only the log-probabilities of the "
                "text's own tokens, so divergence cannot be measured in it"
            )
            return [*rows, unavailable_row(why, windows, heading)]
        if self.known.ids_sha256[protocol.requested] != windows.ids_sha256:
            raise BadInput(
                "its runtime's own token ids differ from the reference's, "
                "so no token can be compared; use --ids source"
            )
        title = f"{typed.name} {windows.protocol.name}"
        with progress_bar(title, windows.scored, "tokens", how.run.progress) as advance:
            divergences = compare(known, runtime, windows, advance, typed.name)
        if windows.ids == "source":
            measured.append(Measured(windows, known, divergences))
        return how.text_rows(divergences, windows, heading)

    def _results_path(self, typed: Typed, out: Path) -> Path:
        name = f"{typed.name}-as-{typed.load_as.short}" if typed.load_as else typed.name
        return results_path(out, name, "eval")

    def _failed(self, typed: Typed, error: QuantwrightError) -> None:
        self.outcome.failures.append((typed.name, error))
        if len(self.artifacts) > 1:
            self.say(f"failed: {typed.name}: {error}")
        if not self.out:
            return
        try:
            subject = typed.subject()
        except QuantwrightError:
            subject = Subject(name=typed.name, recipe=typed.path.name)
        status = "unsupported" if error.exit_code == 2 else "failed"
        subject = replace(subject, status=status, reason=str(error))
        merge_results(self._results_path(typed, self.out), subject, [])
