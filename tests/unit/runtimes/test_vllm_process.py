"""Speaking to vLLM, with a stand-in for its package: what it computes comes back whole, and however it ends
is one line."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_vllm import toy_vllm

from quantize.errors import QuantwrightError, StepFailed, Unsupported
from quantize.recipe import RunOptions
from quantize.runtimes.vllm import VllmRuntime
from quantize.runtimes.vllm_apart import VllmProcess
from quantize.runtimes.vllm_place import Place

RUN = RunOptions(device="cpu", threads=1, progress=False)
OPEN = {"model": "m", "dtype": "float32", "context": 64, "trust_remote_code": False}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_vllm(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def opened(
    python: Path, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmRuntime]:
    """Its checkpoint only tells the vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTWRIGHT_VLLM", str(python))
        with VllmRuntime(make_checkpoint(), RUN.model_copy(update={"dtype": "float32"})) as runtime:
            runtime.vocabulary = 32
            yield runtime


@pytest.mark.parametrize("length", [1, 2, 5, 6, 10, 13])
def test_logits_are_those_of_every_position_however_it_is_cut(opened: VllmRuntime, length: int) -> None:
    rows = np.random.default_rng(length).integers(0, 32, (2, length))
    found: dict[int, np.ndarray] = {}
    opened.logits(rows, 0, lambda row, first, logits: found.update({row: logits.copy()}))
    by_token: dict[int, np.ndarray] = {}
    for row, ids in enumerate(rows):
        assert found[row].shape == (length, 32)
        for token, logits in zip(ids.tolist(), found[row], strict=True):  # a table: one row for a token
            np.testing.assert_array_equal(logits, by_token.setdefault(token, logits))
    if length > 1:
        (scores, ranks), _ = opened.token_scores(rows.tolist(), [1, 1])
        logits = found[0][:-1].astype(np.float64)
        chosen = logits[np.arange(length - 1), rows[0, 1:]]
        np.testing.assert_allclose(scores, chosen - np.log(np.exp(logits).sum(1)), atol=1e-5)
        np.testing.assert_array_equal(ranks, (logits > chosen[:, None]).sum(1) + 1)
    made = opened.generate(rows[0].tolist(), 3)
    assert len(made) == 3
    assert made[0] == found[0][-1].argmax()


def test_it_says_what_it_is(opened: VllmRuntime) -> None:
    assert opened.gives_logits
    assert opened.by_scores
    about = opened.describe()
    assert (about["version"], about["dtype"], about["threads"]) == ("0.0.toy", "float32", 1)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("refuses", Unsupported, "vLLM refuses it: ValueError: 1 validation error this toy opens nothing"),
        ("fails", StepFailed, "vLLM failed: KeyError: 'layers.0.weight'"),
        ("ends", StepFailed, r"vLLM ended \(exit code 7\); its last lines: .*Assertion failed"),
        ("hangs", StepFailed, "neither computed nor said anything for 1 s and was ended"),
    ],
)
def test_however_it_ends_is_one_line(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str,
    kind: type[QuantwrightError], words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TOY_VLLM", how)
    idle = 1.0 if how == "hangs" else 60.0
    process = VllmProcess(Place(python, "a test"), RUN, tmp_path, idle_seconds=idle)
    with pytest.raises(kind, match=words) as raised:
        process.ask("open", **OPEN)
    assert "\n" not in str(raised.value)
    process.close()


def test_logits_that_are_not_what_it_says_of_the_text_are_not_taken(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_VLLM", "lies")
    process = VllmProcess(Place(python, "a test"), RUN, tmp_path)
    assert process.ask("open", **OPEN)["logits"] is False
    process.close()


@pytest.mark.parametrize("how", ["refuses float32", "lacks torch.float32"])
def test_a_format_whose_kernels_have_another_dtype_is_opened_in_it(
    python: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("QUANTWRIGHT_VLLM", str(python))
    monkeypatch.setenv("TOY_VLLM", how)
    with VllmRuntime(make_checkpoint(), RUN, exact=True) as runtime:
        assert runtime.describe()["dtype"] == "bfloat16"
