"""Tensors of the files -> transformers' parameters -> tensors of the files."""

from pathlib import Path

import numpy as np
import pytest
from decoder_cases import make_decoder

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.hf.loaded import experts_note, loaded, sources_again

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.mark.parametrize(
    "model_type", ["llama", "mixtral", "phimoe", "qwen3_moe", "deepseek_v3", "qwen3_next"]
)
def test_what_is_made_of_the_files_gives_them_again(model_type: str, tmp_path: Path) -> None:
    """Bit for bit, every tensor once; the parameters are those of transformers' own loader."""
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint.open(make_decoder(model_type, tmp_path / "source"))
    found = loaded(checkpoint)
    state = AutoModelForCausalLM.from_pretrained(checkpoint.folder).state_dict()
    assert found.parts.keys() == state.keys()
    seen = []
    for source, values in sources_again(found.parts, checkpoint, lambda name: state[name].numpy()):
        assert np.array_equal(values, checkpoint.read_float32(source)), source
        seen.append(source)
    assert sorted(seen) == sorted(checkpoint.tensors)


@pytest.mark.parametrize("model_type", ["phimoe", "longcat_flash"])
def test_layers_that_routers_need_as_they_are(model_type: str, tmp_path: Path) -> None:
    """One in each of the two layers, four experts and what longcat_flash has beside them."""
    checkpoint = Checkpoint.open(make_decoder(model_type, tmp_path / "source"))
    found = loaded(checkpoint)
    outputs = 6 if model_type == "longcat_flash" else 4
    assert [checkpoint.tensors[name].shape for name in found.routers] == [(outputs, 64)] * 2
    assert not found.routers & {f"{layer}.weight" for layer in found.layers.linear}
    assert (outputs, 64) not in found.layers.linear.values()


def test_the_note_of_stacked_experts_says_how_much_they_are(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_decoder("mixtral", tmp_path / "source"))
    note = experts_note(checkpoint, "bitsandbytes")
    share = 2 * 4 * 3 * 64 * 96 / sum(info.parameters for info in checkpoint.tensors.values())
    assert note is not None
    assert note.what == f"kept as F32: {share:.1%} of the model's weights"
    assert experts_note(Checkpoint.open(make_decoder("llama", tmp_path / "dense")), "bitsandbytes") is None
