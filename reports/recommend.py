"""The smallest artifact that keeps within limits of loss, memory and speed, each judged by the worse end of
its interval."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantize.checkpoint.kv_cache import KvShape
from quantize.metrics import KL_MEAN, TG_TOKENS_PER_S
from quantize.units import spell_size
from reports.compare import backend_name
from reports.format import change, number, points, significant
from reports.memory import overhead
from reports.rows import Group, Row, bounds

RUNTIME_ALIASES = {"gguf": "llamacpp", "ollama": "llamacpp", "hf": "transformers"}


@dataclass(frozen=True)
class Limits:
    """What serving asks for; None: no limit. ``divergence`` in nats, ``loss`` and ``accuracy_drop`` as shares
    (0.01: 1 %)."""

    memory_bytes: int | None = None
    context: int | None = None
    divergence: float | None = None
    loss: float | None = None
    accuracy_drop: float | None = None
    tokens_per_second: float | None = None
    runtime: str = ""

    @property
    def empty(self) -> bool:
        return all(
            v is None
            for v in (
                self.memory_bytes,
                self.divergence,
                self.loss,
                self.accuracy_drop,
                self.tokens_per_second,
            )
        )


@dataclass(frozen=True)
class Check:
    """One requirement of one artifact. ``gap``: by what share of the limit it is missed (infinite where
    nothing is known)."""

    name: str
    met: bool
    arithmetic: str
    gap: float = 0.0


@dataclass(frozen=True)
class Candidate:
    row: Row
    checks: tuple[Check, ...]

    @property
    def fits(self) -> bool:
        return all(check.met for check in self.checks)

    @property
    def missed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.met)


@dataclass(frozen=True)
class Advice:
    """``nearest`` is the artifact that misses least, set where none fits."""

    model: str
    limits: Limits
    chosen: Candidate | None
    nearest: Candidate | None
    candidates: tuple[Candidate, ...]  # smallest first

    @property
    def smaller(self) -> Candidate | None:
        """The next smaller than the chosen one, with what it misses."""
        index = self.candidates.index(self.chosen) if self.chosen else 0
        return self.candidates[index - 1] if index > 0 else None

    @property
    def larger(self) -> Candidate | None:
        """The next larger that fits too."""
        index = self.candidates.index(self.chosen) if self.chosen else len(self.candidates)
        return next((c for c in self.candidates[index + 1 :] if c.fits), None)


def recommend(
    group: Group, limits: Limits, shapes: Mapping[str, KvShape | None], shape: KvShape | None = None
) -> Advice:
    """``shapes``: by row label; ``shape`` for all others. Failed rows are not candidates, nor is the
    reference unless it was listed as an artifact: the source itself always loses nothing."""
    rows = [row for row in group.rows if row.subject.status in ("ok", "partial") and row.subject.size_bytes]
    found = [Candidate(row, checks(row, group, limits, shapes.get(row.label) or shape)) for row in rows]
    found.sort(key=lambda c: (c.row.subject.size_bytes or 0, c.row.value(group.loss_metric) or 0))
    chosen = next((c for c in found if c.fits), None)
    nearest = None
    if chosen is None and found:
        nearest = min(found, key=lambda c: (max(check.gap for check in c.missed), len(c.missed)))
    return Advice(group.model, limits, chosen, nearest, tuple(found))


def checks(row: Row, group: Group, limits: Limits, shape: KvShape | None) -> tuple[Check, ...]:
    out = []
    if limits.runtime:
        out.append(_runtime(row, limits.runtime))
        if not out[0].met:  # nothing else about it matters then
            return tuple(out)
    if limits.divergence is not None:
        out.append(_divergence(row, limits.divergence))
    if limits.loss is not None:
        out.append(_loss(row, limits.loss, row is group.reference))
    if limits.accuracy_drop is not None:
        out.append(_accuracy(row, limits.accuracy_drop))
    if limits.memory_bytes is not None:
        out.append(_memory(row, limits, shape))
    if limits.context is not None and shape is not None and shape.context:
        met = limits.context <= shape.context
        out.append(
            Check(
                "context",
                met,
                f"{limits.context:,} of at most {shape.context:,} tokens",
                limits.context / shape.context - 1,
            )
        )
    if limits.tokens_per_second is not None:
        out.append(_speed(row, limits.tokens_per_second, limits.runtime))
    return tuple(out)


def program(name: str) -> str:
    plain = backend_name(name)
    return RUNTIME_ALIASES.get(plain, plain)


def _runtime(row: Row, runtime: str) -> Check:
    known = {program(name) for name in row.subject.loads_in}
    known |= {program(r.backend) for r in row.cells.values() if r.backend}
    if program(runtime) in known:
        return Check("runtime", True, f"loads in {runtime}")
    loads = ", ".join(row.subject.loads_in) or "nothing on record"
    return Check("runtime", False, f"loads in {loads}, not in {runtime}", float("inf"))


def _unknown(name: str, what: str) -> Check:
    return Check(name, False, what, float("inf"))


def _divergence(row: Row, limit: float) -> Check:
    result = row.cells.get(KL_MEAN)
    limits = bounds(result)
    if result is None or limits is None:
        return _unknown("divergence", "divergence from the source was not measured with an interval")
    text = (
        f"KL {significant(result.value or 0, 3)}, at most {significant(limits[1], 3)} nats; limit {limit:g}"
    )
    return Check("divergence", limits[1] <= limit, text, limits[1] / limit - 1 if limit else float("inf"))


def _loss(row: Row, limit: float, is_reference: bool) -> Check:
    found = row.perplexity_change
    if found is None and is_reference:
        return Check("loss", True, "is the reference itself")
    if found is None or found.interval is None:
        return _unknown("loss", "perplexity was not measured in pairs with the source")
    text = f"perplexity {change(found.value)}, at most {change(found.interval[1])}; limit {change(limit)}"
    return Check(
        "loss", found.interval[1] <= limit, text, found.interval[1] / limit - 1 if limit else float("inf")
    )


def _accuracy(row: Row, limit: float) -> Check:
    if not row.task_differences:
        return _unknown("accuracy", "no task was measured on the same items as the source")
    task, worst = min(
        row.task_differences.items(),
        key=lambda pair: pair[1].interval[0] if pair[1].interval else float("-inf"),
    )
    if worst.interval is None:
        return _unknown("accuracy", f"the difference in {task} has no interval")
    drop = -worst.interval[0]
    text = (
        f"{task} {points(worst.value)}, a drop of at most {100 * max(drop, 0):.2f}; limit {100 * limit:.2f}"
    )
    return Check("accuracy", drop <= limit, text, drop / limit - 1 if limit else float("inf"))


def _memory(row: Row, limits: Limits, shape: KvShape | None) -> Check:
    assert limits.memory_bytes is not None
    weights = row.subject.size_bytes or 0
    rest, how = overhead(row, shape)
    if shape is None:
        return _unknown(
            "memory", "the size of its KV cache is unknown: give --model FOLDER or --kv-bytes-per-token"
        )
    tokens = limits.context or shape.context or 0
    cache = shape.bytes_at(tokens)
    words = f"KV cache {spell_size(cache)} ({tokens:,} tokens x {shape.arithmetic})"
    total = weights + cache + rest
    text = (
        f"weights {spell_size(weights)} + {words} + overhead {spell_size(rest)} ({how}) = "
        f"{spell_size(total)}; limit {spell_size(limits.memory_bytes)}"
    )
    return Check("memory", total <= limits.memory_bytes, text, total / limits.memory_bytes - 1)


def _speed(row: Row, limit: float, runtime: str) -> Check:
    result = row.cells.get(TG_TOKENS_PER_S)
    if result is not None and runtime and program(result.backend) != program(runtime):
        return _unknown(
            "speed", f"its speed was measured in {result.backend}, not in {runtime}, so it is not used"
        )
    limits = bounds(result)
    if result is None or limits is None:
        return _unknown(
            "speed",
            "decode speed was not measured with an interval (`quantwright bench`, several repetitions)",
        )
    if result.detail.get("worthless"):
        return _unknown("speed", "its speed varied too much between repetitions to compare: measure again")
    low, value = number(TG_TOKENS_PER_S, limits[0]), number(TG_TOKENS_PER_S, result.value)
    text = f"{result.protocol}: {value} tokens/s, at least {low}; limit {limit:g}"
    return Check("speed", limits[0] >= limit, text, limit / limits[0] - 1 if limits[0] > 0 else float("inf"))


def to_json(advice: Advice) -> dict[str, object]:
    """What ``recommend --json`` ends with for one model; infinite gaps are null."""

    def candidate(c: Candidate | None) -> dict[str, object] | None:
        if c is None:
            return None
        listed = [
            {
                "name": k.name,
                "met": k.met,
                "arithmetic": k.arithmetic,
                "gap": None if k.gap == float("inf") else k.gap,
            }
            for k in c.checks
        ]
        return {
            "recipe": c.row.label,
            "artifact": c.row.subject.name,
            "size_bytes": c.row.subject.size_bytes,
            "checks": listed,
        }

    return {
        "model": advice.model,
        "recommended": advice.chosen.row.label if advice.chosen else None,
        "chosen": candidate(advice.chosen),
        "nearest": candidate(advice.nearest),
        "candidates": [candidate(c) for c in advice.candidates],
    }
