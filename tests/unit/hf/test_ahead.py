"""Tensors that predict further tokens: told by their names, and no hindrance to any method."""

from pathlib import Path

import pytest
from ahead_cases import AHEAD, KEPT, make_ahead

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.hf.ahead import ahead
from quantize.methods.registry import method, parse_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.mark.parametrize("model_type", sorted(AHEAD))
def test_every_method_takes_the_rest(model_type: str, tmp_path: Path) -> None:
    """What is left out is noted; unquantized, all of it is kept."""
    folder, later = make_ahead(model_type, tmp_path / "source")
    checkpoint = Checkpoint.open(folder)
    assert ahead(checkpoint) == later
    for short in ("quanto-int8", "bnb-int8", "gptq-int4:group_size=32", "awq-int4:group_size=32"):
        recipe = parse_recipe(short)
        work = method(recipe.method).plan(checkpoint, recipe)
        assert checkpoint.tensors.keys() - work.checkpoint.tensors.keys() == later, short
        assert len([note for note in work.held.left_out if "further tokens" in note.why]) >= 1
    pytest.importorskip("llama_cpp")
    recipe = parse_recipe("gguf-q8_0")
    work = method(recipe.method).plan(checkpoint, recipe)
    gone = set() if model_type in KEPT else later
    assert checkpoint.tensors.keys() - work.checkpoint.tensors.keys() == gone
    recipe = parse_recipe("float16")
    assert later <= method(recipe.method).plan(checkpoint, recipe).checkpoint.tensors.keys()


def test_a_layer_too_many_is_refused(tmp_path: Path) -> None:
    """Without what only such layers have, and without a word in the config, it may be the model's own."""
    import json

    from safetensors.numpy import load_file, save_file

    folder, _ = make_ahead("glm4_moe", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    tensors = load_file(folder / "model.safetensors")
    own = (".eh_proj.", ".enorm.", ".hnorm.")
    plain = {name: tensor for name, tensor in tensors.items() if not any(each in name for each in own)}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = parse_recipe("quanto-int8")
    with pytest.raises(Unsupported, match="has no counterpart"):
        method(recipe.method).plan(Checkpoint.open(folder), recipe)
