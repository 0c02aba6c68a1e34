"""Runs as ``eval`` and ``bench`` write them: the real types and files, with numbers drawn from a known
distribution."""

import hashlib
import math
from pathlib import Path

import numpy as np

from evals import statistics
from quantize.results import EvalResult, Subject, results_path, write_results

MODEL = "models/small-llama"
CHUNKS, TOKENS = 120, 255
#: recipe -> (bits per weight, mean divergence in nats, decode tokens/s, backend, what it loads in)
RECIPES = {
    "gguf-q8_0": (8.5, 0.0011, 118.0, "llama.cpp", ("llama.cpp", "ollama")),
    "gguf-q5_k_m": (5.7, 0.0042, 131.0, "llama.cpp", ("llama.cpp", "ollama")),
    "gguf-q4_k_m": (4.9, 0.013, 140.0, "llama.cpp", ("llama.cpp", "ollama")),
    "gptq-int4": (4.3, 0.021, 41.0, "transformers", ("transformers", "vllm")),
    "awq-int4": (4.3, 0.024, 39.0, "transformers", ("transformers", "vllm")),
    "quanto-int8": (8.3, 0.0016, 52.0, "transformers", ("transformers",)),
    "quanto-int4": (4.6, 0.045, 30.0, "transformers", ("transformers",)),
    "bnb-int8": (8.2, 0.0035, 44.0, "transformers", ("transformers",)),
    "bnb-nf4": (4.2, 0.029, 37.0, "transformers", ("transformers",)),
}
PARAMETERS = 4_200_000
ENVIRONMENT = {
    "python": "3.11.2", "machine": "x86_64", "torch": "2.13.0", "threads": 2, "text": "held-out.txt",
    "text_sha256": "ab" * 32, "ids_sha256": "cd" * 32,
}  # fmt: skip


def subject(recipe: str, **changes: object) -> Subject:
    bits = RECIPES.get(recipe, (16.0,))[0]
    fields: dict[str, object] = {
        "name": f"artifacts/small-llama/{recipe}", "recipe": recipe, "model": MODEL,
        "digest": hashlib.sha256(recipe.encode()).hexdigest(),
        "verified": "full", "size_bytes": round(PARAMETERS * bits / 8), "bits_per_weight": bits,
        "parameters": PARAMETERS,
        "loads_in": RECIPES[recipe][4] if recipe in RECIPES else ("transformers",),
    }  # fmt: skip
    return Subject(**{**fields, **changes})  # type: ignore[arg-type]


def reference_nll(seed: int = 0) -> np.ndarray:
    """Mean negative log-likelihood of each chunk, as much apart as chunks of a book are."""
    return np.random.default_rng(seed).normal(3.1, 0.35, CHUNKS)


def quality(
    s: Subject, divergence: float, backend: str, role: str = "", seed: int = 1, chunks: int = CHUNKS
) -> list[EvalResult]:
    """perplexity of all; divergence rows of all but the reference."""
    rng = np.random.default_rng(seed)
    reference = reference_nll()[:chunks]
    kl = divergence * rng.lognormal(-0.08, 0.4, chunks)
    nll = reference + kl * rng.normal(1, 0.5, chunks)
    counts = np.full(chunks, float(TOKENS))
    environment = dict(ENVIRONMENT) if role == "reference" else {**ENVIRONMENT, "reference": MODEL}

    def row(metric: str, value: float, samples: np.ndarray | None = None, **more: object) -> EvalResult:
        fields: dict[str, object] = {
            "artifact": s.name, "metric": metric, "protocol": "llamacpp-512", "value": value,
            "n": chunks * TOKENS, "role": role,
            "ids": "source", "backend": backend, "artifact_digest": s.digest, "environment": environment,
            "protocol_parameters": {"window": 512, "stride": 512},
            "samples": () if samples is None else tuple(samples.tolist()),
        }  # fmt: skip
        return EvalResult(**{**fields, **more})  # type: ignore[arg-type]

    mean = float(nll.mean())
    bounds = statistics.perplexity_interval(nll * counts, counts)
    out = [
        row(
            "perplexity",
            math.exp(mean),
            nll,
            interval=bounds,
            stderr=math.exp(mean) * 0.35 / math.sqrt(chunks * TOKENS),
        )
    ]
    if role == "reference":
        return out
    agreement = 1 - 1.6 * np.sqrt(kl) * 0.3
    parts = ((0.0, 0.25, 2.0), (0.25, 0.5, 1.4), (0.5, 0.75, 0.8), (0.75, 0.95, 0.4), (0.95, 1.0, 0.1))
    buckets = [
        {
            "from": a,
            "to": b,
            "tokens": 6000,
            "kl_mean": divergence * f,
            "top1_agreement": 1 - f / 10,
        }
        for a, b, f in parts
    ]
    interval = statistics.mean_interval(kl * counts, counts)
    out.append(
        row("kl_mean", float(kl.mean()), kl, interval=interval, unit="nats", detail={"buckets": buckets})
    )
    for name, factor in (
        ("median", 0.3),
        ("p90", 2.2),
        ("p95", 4.0),
        ("p99", 14.0),
        ("p99.9", 60.0),
        ("max", 300.0),
    ):
        out.append(row(f"kl_{name}", divergence * factor, unit="nats"))
    top = statistics.mean_interval(agreement * counts, counts)
    out.append(row("top1_agreement", float(agreement.mean()), agreement, interval=top))
    return out


def task(
    s: Subject, name: str, accuracy: float, role: str = "", items: int = 300, flips: int = 12
) -> list[EvalResult]:
    """0/1 items: the reference's, some of them flipped."""
    correct = (np.random.default_rng(7).random(items) < 0.62).astype(float)
    if role != "reference":
        where = np.random.default_rng(list(f"{s.recipe} {name}".encode())).choice(items, flips, replace=False)
        correct[where] = 1 - correct[where]
    value = float(correct.mean())
    return [
        EvalResult(
            artifact=s.name, metric=metric, protocol="lm-eval", value=value,
            stderr=math.sqrt(value * (1 - value) / (items - 1)),
            interval=statistics.accuracy_interval(correct), n=items, task=name, role=role, backend="lm-eval",
            samples=tuple(correct.tolist()),
            environment={"reference": MODEL} if role != "reference" else {},
            protocol_parameters={"num_fewshot": 0},
        )
        for metric in ("accuracy", "accuracy_norm")
    ]  # fmt: skip


def speed(s: Subject, decode: float, backend: str, seed: int = 3) -> list[EvalResult]:
    rng = np.random.default_rng(seed)
    environment = {"cpu": "test cpu", "cores_usable": 8, "load_average": 0.3, "threads": 2}

    def row(metric: str, protocol: str, samples: np.ndarray) -> EvalResult:
        return EvalResult(
            artifact=s.name, metric=metric, protocol=protocol, value=float(np.median(samples)),
            interval=(float(samples.min()), float(samples.max())),
            stderr=float(samples.std(ddof=1) / math.sqrt(len(samples))), n=len(samples), backend=backend,
            artifact_digest=s.digest, samples=tuple(samples.tolist()),
            environment=environment, protocol_parameters={"prefill": 512, "repetitions": 5},
        )  # fmt: skip

    peak = (s.size_bytes or 0) + (60e6 if backend == "llama.cpp" else 420e6)
    return [
        row("pp_tokens_per_s", "pp512", decode * 6 * rng.normal(1, 0.02, 5)),
        row("tg_tokens_per_s", "tg128", decode * rng.normal(1, 0.02, 5)),
        row("ttft_ms", "pp512", 1e3 * 512 / (decode * 6) * rng.normal(1, 0.02, 5)),
        row("peak_memory_bytes", "VmHWM", peak * np.ones(3)),
    ]


def write_run(
    run: Path, recipes: dict[str, tuple] | None = None, tasks: tuple[str, ...] = ("held-out-choice",)
) -> Path:  # type: ignore[type-arg]
    """A whole run: reference, floor, artifacts in two files each, one failure, one unsupported."""
    recipes = RECIPES if recipes is None else recipes
    source = Subject(name=MODEL, recipe="bfloat16", model=MODEL, digest="ef" * 32, size_bytes=PARAMETERS * 2,
                     bits_per_weight=16.0,
                     parameters=PARAMETERS, loads_in=("transformers",), role="reference")  # fmt: skip
    rows = quality(source, 0.0, "transformers", "reference", seed=0)
    for name in tasks:
        rows += task(source, name, 0.62, "reference")
    floor = Subject(name="noise floor (bf16 rounding)", recipe="")
    rows += quality(floor, 0.0002, "", "floor", seed=9)
    write_results(results_path(run, source.name, "eval"), source, rows)
    for index, (recipe, (_, divergence, decode, backend, *_rest)) in enumerate(recipes.items()):
        s = subject(recipe)
        why = "width 640 is not a multiple of 256"
        notes = (
            ({"tensor": "model.layers.0.mlp.down_proj.weight", "what": "kept in 8 bits", "why": why},)
            if index == 1
            else ()
        )
        s = Subject(**{**s.__dict__, "notes": notes})
        rows = quality(s, divergence, backend, seed=index + 20)
        for name in tasks:
            rows += task(s, name, 0.62, flips=4 + 3 * index)
        write_results(results_path(run, s.name, "eval"), s, rows)
        write_results(results_path(run, s.name, "bench"), s, speed(s, decode, backend, seed=index + 40))
    failed = Subject(
        "artifacts/small-llama/gptq-int2",
        "gptq-int2",
        MODEL,
        status="failed",
        reason="killed by signal 9 (out of memory)",
    )
    write_results(results_path(run, failed.name, "convert"), failed, [])
    reason = "hidden size 60 is no multiple of 32"
    unsupported = Subject(
        "artifacts/small-llama/quanto-int2", "quanto-int2", MODEL, status="unsupported", reason=reason
    )
    write_results(results_path(run, unsupported.name, "convert"), unsupported, [])
    return run
