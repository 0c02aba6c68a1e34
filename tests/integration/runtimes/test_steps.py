"""Token by token, transformers gives what it gives for the whole text."""

from pathlib import Path

import numpy as np
import pytest
from decoder_cases import CASES, make_decoder

from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
#: float32 sums in another order, over the deviation of the logits: 2.5e-4 seen (gated delta nets), 1 where
#: positions or a state are wrong
TOLERANCE = 1e-3
#: Bamba and MiniMax count positions from 0 again unless told; Mamba and Recurrent Gemma keep their states
#: elsewhere
PARTICULAR = ("bamba", "minimax", "mamba", "recurrent_gemma", "llama")


def check(model: str, folder: Path) -> None:
    make_decoder(model, folder)
    ids = np.random.default_rng(0).integers(1, 4000, (2, 24))
    with open_runtime(folder, RunOptions(device="cpu", dtype="float32", progress=False)) as runtime:
        whole = np.zeros((*ids.shape, runtime.vocabulary), np.float32)

        def keep(row: int, first: int, logits: np.ndarray) -> None:
            whole[row, first : first + len(logits)] = logits

        runtime.logits(ids, 0, keep)
        for row, prompt in ((0, 12), (1, 5)):  # the second begins anew
            steps = [runtime.start(ids[row, :prompt].tolist())]
            steps += [runtime.step(int(token)) for token in ids[row, prompt:]]
            off = np.abs(np.stack(steps) - whole[row, prompt - 1 :]).max() / whole.std()
            assert off < TOLERANCE


@pytest.mark.parametrize("model", PARTICULAR)
def test_steps_are_the_whole_text(model: str, tmp_path: Path) -> None:
    check(model, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model", sorted(set(CASES) - set(PARTICULAR)))
def test_steps_of_every_family(model: str, tmp_path: Path) -> None:
    check(model, tmp_path)
