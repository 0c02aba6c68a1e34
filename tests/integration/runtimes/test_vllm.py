"""vLLM against transformers on the same tokens. vLLM pins other libraries than this program does, so it runs
in an environment of its own (docs/engines.md); where there is none those tests skip, and what is done with a
runtime that scores texts is tested without."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigram import Bigram, random_table

from evals import evaluate
from evals.perplexity import score
from evals.protocols import parse_protocol
from evals.windows import make_windows
from quantize import convert
from quantize.calibration.texts import stdlib_documentation
from quantize.errors import Unsupported
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.runtimes.vllm_place import vllm_place
from quantize.verification.across_runtimes import verify_anywhere

RUN = RunOptions(device="cpu", threads=1, progress=False)


class Scorer(Bigram):
    """Gives no logits: what its table says of a row's own tokens, and ranks."""

    gives_logits = False

    def token_scores(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        out = []
        for row, first in zip(rows, firsts, strict=True):
            logits = self.table[np.asarray(row[first - 1 : -1])].astype(np.float64)
            chosen = logits[np.arange(len(logits)), row[first:]]
            ranks = (logits > chosen[:, None]).sum(1) + 1
            out.append((chosen - np.log(np.exp(logits).sum(1)), ranks))
        return out


@pytest.mark.parametrize("protocol", ["llamacpp-16", "gptq-16", "strided-16-4", "lmeval-wikitext-16"])
def test_a_runtime_without_logits_gives_the_same_scores(protocol: str) -> None:
    table = random_table(60)
    full, bare = Bigram(table, bos=0), Scorer(table, bos=0)
    windows = make_windows(
        parse_protocol(protocol), "Some text to be scored, token by token. " * 9, full.tokenize, ids="runtime"
    )
    a, b = score(full, windows), score(bare, windows)
    np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=1e-6)
    assert a.excluded == b.excluded == 0


def test_likelihoods_and_greediness_without_logits() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from evals.harness import RuntimeLM
    from evals.special import SpecialIds

    table = random_table(60)
    pairs = [
        ("ab", "c"),
        ("ab", "cd"),
        ("", "ab"),
        ("q" * 100, "rs"),
        *[("x", chr(c)) for c in range(65, 91)],
    ]

    def ask(model: Bigram) -> list[tuple[float, bool]]:
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return RuntimeLM(model, None, SpecialIds(0, 0)).loglikelihood(requests)

    full, bare = ask(Bigram(table, context=48, bos=0)), ask(Scorer(table, context=48, bos=0))
    assert [value for value, _ in bare] == pytest.approx([value for value, _ in full], rel=1e-6)
    assert [greedy for _, greedy in bare] == [greedy for _, greedy in full]


def test_without_vllm_it_says_so(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("QUANTWRIGHT_VLLM", raising=False)
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path))
    if vllm_place() is not None:
        pytest.skip("vLLM is installed beside this program")
    with pytest.raises(Unsupported, match="vLLM is not installed"):
        evaluate([demo_checkpoint], runtime="vllm", tokens=600, run=RUN)


def vllm_here() -> None:
    if vllm_place() is None:
        pytest.skip("vLLM is not here: quantwright env install vllm")


@pytest.mark.long
def test_vllm_agrees_with_transformers(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    vllm_here()
    model = make_checkpoint()
    (tmp_path / "text.txt").write_text(stdlib_documentation()[40_000:48_000], encoding="utf-8")
    settings = {
        "text": tmp_path / "text.txt",
        "tokens": 1500,
        "protocol": ["llamacpp-256", "gptq-128"],
        "run": RUN,
    }
    plain = {
        (r.protocol, r.metric): r.value
        for r in evaluate([model], prompts=["The value"], generate=6, **settings)
    }
    alone = evaluate([model], runtime="vllm", prompts=["The value"], generate=6, **settings)
    rows = evaluate([model], reference=model, runtime="vllm", prompts=["The value"], generate=6, **settings)
    # by its scores of the text, and by its whole distributions
    for found in ({(r.protocol, r.metric): r for r in each} for each in (alone, rows)):
        for key, value in plain.items():
            assert found[key].backend == "vllm"
            if value is not None:
                assert found[key].value == pytest.approx(value, rel=1e-5)
    # float32 on both sides
    assert 0 <= (found["gptq-128", "kl_mean"].value or 0) < 1e-7


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe",
    [
        "rtn-int4:group_size=32",
        "gptq-int4:group_size=32",
        "gptq-int4:group_size=128,overrides=self_attn.[qkv]_proj=g32;down_proj=g64",
        "awq-int4:group_size=32",
        "ct-w4a16",
        "ct-int8",
        "bfloat16",
    ],
)
def test_vllm_computes_what_is_stored(
    make_checkpoint: Callable[..., Path], tmp_path: Path, recipe: str
) -> None:
    """Shapes that its kernels for processors take: multiples of 32."""
    vllm_here()
    source = make_checkpoint(initializer_range=0.1)
    made = convert(
        source,
        recipe,
        tmp_path / "out",
        calibration=CalibrationOptions(source="stdlib", tokens=2048, sequence_length=128),
        verify="none",
        run=RUN,
    )
    report = verify_anywhere(str(made.folder), str(source), ["vllm"], RUN)
    (ran,) = report.runtimes
    assert (ran.status, ran.why) == ("agrees", "")
    assert ran.kl is not None
    # rounding activations to 8 bits moves this random model by .0028, and four times that is allowed
    assert ran.kl <= (ran.tolerance or 0) <= (2e-2 if recipe == "ct-int8" else 1e-2)
    assert len(ran.ids) == 24


def said(*arguments: str) -> Any:
    """What the command's last line of JSON says."""
    command = [sys.executable, "-m", "quantize.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["ct-w4a16", "bfloat16"])
def test_vllm_is_measured_by_its_own_clock(demo_checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    """No speed is compared: what is held is that every token that was asked for is counted once."""
    vllm_here()
    made = convert(demo_checkpoint, recipe, tmp_path / "out", verify="none", run=RUN).folder
    sizes = ("--prefill", "64", "--decode", "9", "--repetitions", "2", "--depth", "0,16", "--batch", "1,3")
    run = str(tmp_path / "run")
    measured = said("bench", str(made), "--runtime", "vllm", "--threads", "1", *sizes, "-o", run)
    rows = {(row["metric"], row["protocol"]): row for row in measured}
    for batch, suffix in ((1, ""), (3, "@b3")):
        rates, first = rows["pp_tokens_per_s", f"pp64{suffix}"], rows["ttft_ms", f"pp64{suffix}"]
        for rate, ms in zip(rates["samples"], first["samples"], strict=True):
            assert 0 < 64 * batch / rate < ms / 1e3
        for depth in ("", "@d16"):
            assert rows["tg_tokens_per_s", f"tg9{depth}{suffix}"]["n"] == 2
            gaps = rows["inter_token_ms", f"tg9{depth}{suffix}"]
            assert 0 < gaps["detail"]["p50"] <= gaps["detail"]["p99"]
    assert all(row["value"] > 0 and row["backend"] == "vllm" for row in rows.values())
    runtime = rows["load_ms", "open"]["environment"]["runtime"]
    assert runtime["version"]
    assert (runtime["device"], runtime["dtype"], runtime["threads"]) == ("cpu", "bfloat16", 1)
    assert runtime["quantization"] == ("compressed-tensors" if recipe == "ct-w4a16" else "")
    peak = rows["peak_memory_bytes", "VmHWM"]
    assert peak["value"] - peak["detail"]["rss_before_load_bytes"] > rows["size_bytes", "disk"]["value"]
    (reported,) = said("report", run)["rows"]
    assert reported["tg_tokens_per_s"] in {
        rows["tg_tokens_per_s", each]["value"] for each in ("tg9", "tg9@b3")
    }
    assert reported["uncertainty"]["tg_tokens_per_s"]["backend"] == "vllm"
