"""Models that also see, given text alone: token by token as bench and generation go, and in whole rows."""

from pathlib import Path

import numpy as np
import pytest
from wrapper_cases import WRAPPERS, make_wrapper

from quantize.recipe import RunOptions
from quantize.runtimes.transformers import TransformersRuntime

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.mark.parametrize("model_type", sorted(WRAPPERS))
def test_steps_give_what_whole_rows_give(model_type: str, tmp_path: Path) -> None:
    """Twice, since a model may keep positions of the text before. float32 sums in another order: 1e-6 of
    logits of magnitude 1."""
    folder = make_wrapper(model_type, tmp_path / "source")
    run = RunOptions(device="cpu", dtype="float32")
    with TransformersRuntime(folder, run) as runtime:
        assert runtime.context == 256
        for first in (1, 100):
            ids = np.arange(first, first + 24)
            whole = np.zeros((24, runtime.vocabulary), np.float32)

            def keep(row: int, begin: int, logits: np.ndarray, into: np.ndarray = whole) -> None:
                into[begin : begin + len(logits)] = logits

            runtime.logits(ids[None], 0, keep)
            found = [runtime.start(ids[:20].tolist()), *(runtime.step(int(token)) for token in ids[20:])]
            assert np.abs(np.stack(found) - whole[19:]).max() < 1e-5 * np.abs(whole).max()
