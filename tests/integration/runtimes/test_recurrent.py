"""Models with a recurrent state in llama.cpp: what one row leaves behind reaches no other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, SMALL, make, write_gguf_f32

from evals.harness import RuntimeLM
from evals.special import SpecialIds
from quantize.errors import Unsupported
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
RUN = RunOptions(threads=1, progress=False)
BY_NAME = {case.name: case for case in CASES}
#: Mamba's state alone, gated delta nets, attention and Mamba 2 side by side, short convolutions
NAMES = ("Mamba", "Qwen3-Next", "Falcon-H1", "LFM2")


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_apart(name: str, tmp_path: Path) -> None:
    """As transformers computes each row alone: chunks of a text (side by side, more of them than llama.cpp
    takes at once), items of a task that begin alike, and token by token. A state sums rounding over all
    tokens before: 9e-5 of the logits' deviation was seen, in each row alone just so."""
    case, rng = BY_NAME[name], np.random.default_rng(5)
    tolerance = 4 * case.tolerance
    model, folder = make(case, tmp_path / "hf")
    write_gguf_f32(folder, tmp_path / "model.gguf")

    def expected(row: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = model(torch.tensor([row])).logits[0].double().numpy()
        return logits

    def close(got: np.ndarray, row: list[int], first: int) -> bool:
        want = expected(row)[first:]
        return bool(np.abs(got - want).max() < tolerance * want.std())

    ids = rng.integers(1, SMALL["vocab_size"], (10, 64))
    chunks: dict[int, list[np.ndarray]] = {}
    with open_runtime(tmp_path / "model.gguf", RUN, exact=True, context=64) as runtime:
        runtime.logits(ids, 32, lambda row, first, logits: chunks.setdefault(row, []).append(logits.copy()))
        assert len(chunks) == 10
        assert all(close(np.concatenate(found), ids[row].tolist(), 32) for row, found in chunks.items())
        last = [runtime.start(ids[0][:30].tolist()).copy()]
        last += [runtime.step(int(token)).copy() for token in ids[0][30:34]]
        assert close(np.stack(last), ids[0][:34].tolist(), 29)

        question, answers = ids[0][:20].tolist(), [ids[row][: 2 + row].tolist() for row in (1, 2, 3)]
        requests = [(("", ""), question, answer) for answer in answers] + [(("", ""), answers[0], question)]
        found = RuntimeLM(runtime, None, SpecialIds(0, 0))._loglikelihood_tokens(requests)
        for (value, _), (_, context, answer) in zip(found, requests, strict=True):
            logits = torch.from_numpy(expected(context + answer)[len(context) - 1 : -1])
            wanted = torch.log_softmax(logits, -1)[range(len(answer)), answer].sum().item()
            assert abs(value - wanted) < len(answer) * tolerance * logits.std().item()
        with pytest.raises(Unsupported, match="every row separately"):
            runtime.tree_logits([[question]], [[0]], lambda *_: None)
