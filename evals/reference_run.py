"""The reference's one run: its own rows, and its logits for the artifacts to be compared with, kept on disk
or, where they take more than the cache may, made again beside each."""

from pathlib import Path

from evals.divergence import Divergences, compare, divergences_from_itself
from evals.floors import floor_rows
from evals.keeping import Keeper, Kept
from evals.measuring import Measuring
from evals.perplexity import TokenScores
from evals.reference import CachedReference, ReferenceRows, SideBySideReference
from evals.rows import perplexity_rows
from evals.subjects import Typed
from evals.windows import Windows
from quantize.packages import importable
from quantize.progress import progress_bar
from quantize.results import EvalResult, merge_results, results_path
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime


class ReferenceRun:
    """``listed``: whether it is one of the artifacts too. ``rows``: by protocol as typed, with the hash of
    the ids they are of. ``results``: its own; ``floors``: rows that were not listed."""

    def __init__(self, measuring: Measuring, typed: Typed, listed: bool, out: Path | None):
        self.measuring = measuring
        self.typed = typed
        self.listed = listed
        self.out = out
        self.rows: dict[str, ReferenceRows] = {}
        self.ids_sha256: dict[str, str] = {}
        self.results: list[EvalResult] = []
        self.floors: list[EvalResult] = []
        self._runtime: Runtime | None = None

    def measure(self) -> None:
        """Run it once: its logits kept, or the runtime kept open; its own rows made on the way."""
        how = self.measuring
        self.typed.fetch()
        if not (self.listed or how.generate or how.diverges):  # nothing is asked of it but its name
            self._write()
            return
        keeper = Keeper(how.cache, how.options.cache_limit_bytes, self.typed.digest, how.say, how.run.scratch)
        self._runtime = runtime = self._open(keeper)
        heading = how.heading(self.typed, runtime, "reference")
        for windows in self._windows(runtime):
            if not how.diverges:
                if self.listed:
                    scores = how.score(runtime, windows, self.typed.name)
                    self.results += perplexity_rows(scores, windows, heading)
                continue
            known = self._keep(keeper, runtime, windows)
            self.rows[windows.protocol.requested] = known
            self.ids_sha256[windows.protocol.requested] = windows.ids_sha256
            if self.listed:
                self.results += how.text_rows(self._from_itself(known, runtime, windows), windows, heading)
            elif isinstance(known, CachedReference):
                scores = TokenScores(known.true_log_probs, windows.offsets)
                self.results += perplexity_rows(scores, windows, heading)
        if self.listed:
            self.results += how.task_rows(self.typed, runtime, heading)
        kept = self._kept_generations(keeper, runtime)
        self.results += how.generation_rows(self.typed, runtime, heading, kept)
        if how.options.floors and how.diverges:
            everywhere = [(w, self.rows[w.protocol.requested]) for w in self._windows(runtime)]
            kept = self._kept_floors(keeper, runtime)
            self.floors = floor_rows(self.typed, runtime, everywhere, how.run, heading, kept)
        self._write()
        if not any(isinstance(rows, SideBySideReference) for rows in self.rows.values()):
            self._close_runtime()

    def close(self) -> None:
        for rows in self.rows.values():
            if isinstance(rows, CachedReference):
                rows.close()
        self._close_runtime()

    def _write(self) -> None:
        if self.out:
            # the largest is an artifact like the others
            role = "" if "reference_why" in self.measuring.environment else "reference"
            path = results_path(self.out, self.typed.name, "eval")
            merge_results(path, self.typed.subject(role), self.results + self.floors)

    def _open(self, keeper: Keeper) -> Runtime:
        light = None
        if self.measuring.diverges and not self.listed:

            def others(runtime: Runtime) -> list[Kept]:
                return [
                    kept
                    for find in (self._kept_generations, self._kept_floors)
                    if (kept := find(keeper, runtime))
                ]

            light = keeper.open_light(self.typed.path, self.measuring.run, self._windows, others)
        return light or open_runtime(self.typed.path, self.measuring.run)

    def _windows(self, runtime: Runtime) -> list[Windows]:
        how = self.measuring
        return [how.text.windows(protocol, runtime, self.typed) for protocol in how.protocols]

    def _kept_floors(self, keeper: Keeper, runtime: Runtime) -> Kept | None:
        if not self.measuring.options.floors:
            return None
        ids = [windows.ids_sha256 for windows in self._windows(runtime)]
        return keeper.other("floors", runtime, self.typed.name, ids, importable("llama_cpp"))

    def _kept_generations(self, keeper: Keeper, runtime: Runtime) -> Kept | None:
        how = self.measuring
        if not how.generate:
            return None
        source = how.text.tokenizer(self.typed)
        ids, ends = source.sha256 if source else "runtime", sorted(how.text.special(self.typed).ends)
        return keeper.other("generations", runtime, how.prompts, how.generate, ids, ends)

    def _keep(self, keeper: Keeper, runtime: Runtime, windows: Windows) -> ReferenceRows:
        how = self.measuring
        if found := keeper.find(windows, runtime):
            how.say(f"{windows.protocol.name}: using the stored logits of the reference ({found.folder})")
            return found
        title = f"{self.typed.name} {windows.protocol.name}"
        with progress_bar(title, windows.scored, "tokens", how.run.progress) as advance:
            return keeper.keep(windows, runtime, self.listed, advance)

    def _from_itself(self, known: ReferenceRows, runtime: Runtime, windows: Windows) -> Divergences:
        found = divergences_from_itself(known, windows) if isinstance(known, CachedReference) else None
        if found is not None:
            return found
        title = f"{self.typed.name} {windows.protocol.name}"
        with progress_bar(title, windows.scored, "tokens", self.measuring.run.progress) as advance:
            return compare(known, runtime, windows, advance, self.typed.name)

    def _close_runtime(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
