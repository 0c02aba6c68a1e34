"""GPTQ of the output layer too: read back as computed, by this program's reader and by GPTQModel; where it
was tied, the embedding stays beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder
from packed_families import verified_folder
from safetensors.numpy import load_file

from quantize.errors import Unsupported
from quantize.formats.packed import OWN
from quantize.formats.stored import stored_packed
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint

pytest.importorskip("gptqmodel")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # transformers' remarks on odd little configs
    pytest.mark.usefixtures("eager"),
]


@pytest.mark.parametrize(("model_type", "tied"), [("llama", True), ("llama", False), ("gemma2", True)])
def test_the_output_layer_is_quantized(model_type: str, tied: bool, tmp_path: Path) -> None:
    from gptqmodel import BACKEND, GPTQModel

    source = make_decoder(model_type, tmp_path / "source", tie_word_embeddings=tied)
    outcome = verified_folder(source, "gptq-int4:lm_head=true,overrides=lm_head=int8", tmp_path)
    assert outcome.opener == OWN
    folder = tmp_path / "made"
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["lm_head"] is True
    assert config["tie_word_embeddings"] is False
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert "lm_head.qweight" in after
    name = "model.embed_tokens.weight"
    assert np.array_equal(before[name], after[name])
    whole = dict(stored_packed(folder).whole())
    assert whole["lm_head.weight"].shape == before[name].shape
    notes = plan(open_checkpoint(source), parse_recipe("gptq-int4:lm_head=true")).planned.notes  # type: ignore[attr-defined]
    assert tied == any("to which it was tied: " in note.what for note in notes)
    model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
    theirs = model.lm_head.dequantize_weight().T.float().numpy()
    np.testing.assert_allclose(theirs, whole["lm_head.weight"], rtol=2**-10, atol=1e-7)
    embedding = model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(embedding, after[name].astype(np.float16))


def test_a_head_that_words_do_not_hold_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path, vocab_size=4100))
    with pytest.raises(Unsupported, match=r"layer has 4100 outputs, .* packs multiples of 16; drop lm_head"):
        plan(checkpoint, parse_recipe("gptq-int4:lm_head=true"))
