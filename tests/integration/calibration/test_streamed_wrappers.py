"""The streamed reference of a model that also sees, on text alone."""

from pathlib import Path

import numpy as np
import pytest
from wrapper_cases import WRAPPERS, make_wrapper

from quantize.calibration.layers import streamed_model
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.hf.products import exact_products
from quantize.recipe import RunOptions
from quantize.runtimes.transformers import TransformersRuntime

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.mark.parametrize("model_type", sorted(WRAPPERS))
def test_logits_are_those_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    """Of transformers' own wrapper, given token ids only: the same operations on the same float32 weights,
    in the runtime that takes body and head apart. Nothing beside the text model is read."""
    import torch
    from transformers import AutoModelForImageTextToText

    checkpoint = Checkpoint.open(make_wrapper(model_type, tmp_path / "source"))
    rows = np.arange(1, 65).reshape(2, 32)
    read: set[str] = set()

    def look(name: str) -> np.ndarray:
        read.add(name)
        return checkpoint.read_float32(name)

    model = streamed_model(checkpoint, look)
    found = np.zeros((2, 32, 4096), np.float32)

    def keep(row: int, first: int, logits: np.ndarray) -> None:
        found[row, first : first + len(logits)] = logits

    run = RunOptions(device="cpu", dtype="float32")
    with TransformersRuntime(checkpoint.folder, run, model=model) as runtime:
        runtime.logits(rows, 0, keep)
    whole = AutoModelForImageTextToText.from_pretrained(checkpoint.folder)
    with torch.no_grad(), exact_products():
        expected = whole(input_ids=torch.from_numpy(rows)).logits.numpy()
    assert np.array_equal(found, expected)
    assert not [name for name in read if "vision" in name or "visual" in name or "projector" in name]
