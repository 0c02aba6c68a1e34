"""Checkpoints that hold more than a loaded model takes from them, or the same under older names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantize import Artifact, convert
from quantize.artifact import Note
from quantize.hf.tensors import StoredTensors
from quantize.recipe import CalibrationOptions

CALIBRATION = CalibrationOptions(tokens=1024, sequence_length=128)
RECIPES = ("gptq-int4", "awq-int4", "quanto-int4", "bnb-nf4")


def add(folder: Path, **tensors: object) -> None:
    from safetensors.torch import load_file, save_file

    state = {**load_file(folder / "model.safetensors"), **tensors}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def made(source: Path, recipe: str, out: Path) -> tuple[Artifact, set[str], dict[str, Note]]:
    artifact = convert(source, recipe, out / recipe, calibration=CALIBRATION)
    assert artifact.verified == "full"
    return artifact, set(StoredTensors(artifact.folder)), {note.tensor: note for note in artifact.manifest.notes}


@pytest.fixture(scope="module")
def tied(make_checkpoint: Callable[..., Path]) -> Path:
    """A tied model that also stores its head, and rotary frequencies as exporters before August 2023 left them."""
    import torch
    from safetensors.torch import load_file

    folder = make_checkpoint(num_hidden_layers=1, tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    frequencies = 1 / 10000 ** (torch.arange(0, 64, 2).float() / 64)
    add(folder, **{"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies})
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stored_copy_is_left_out_and_noted(tied: Path, recipe: str, tmp_path: Path) -> None:
    artifact, stored, notes = made(tied, recipe, tmp_path)
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        assert name not in stored
        assert notes[name].what == "left out"
    alone = 4096 * 256 + 256 * (256 + 128 + 128 + 256 + 3 * 512) + 3 * 256
    assert artifact.manifest.source.parameters == alone


def test_a_head_that_is_not_the_embedding_unties_the_model(tied: Path, tmp_path: Path) -> None:
    """As transformers does, which then uses both."""
    from safetensors.torch import load_file

    source = shutil.copytree(tied, tmp_path / "source")
    head = load_file(source / "model.safetensors")["lm_head.weight"] * 2
    add(source, **{"lm_head.weight": head})
    for recipe in ("gptq-int4", "quanto-int8", "bnb-nf4"):
        artifact, stored, notes = made(source, recipe, tmp_path)
        assert "lm_head.weight" in stored
        assert notes["lm_head.weight"].what == "tie_word_embeddings set to false" or "kept" in notes["lm_head.weight"].what
        assert json.loads((artifact.folder / "config.json").read_text())["tie_word_embeddings"] is False
        assert np.array_equal(StoredTensors(artifact.folder).float32("lm_head.weight"), head.float().numpy())


@pytest.mark.parametrize("recipe", ["quanto-int8", "bnb-nf4"])
def test_a_tensor_that_transformers_renames_when_it_loads_it(recipe: str, tmp_path: Path, demo_checkpoint: Path) -> None:
    """GPT-NeoX: ``embed_out`` in the files of every Pythia, ``lm_head`` in the model; with the causal mask and a bias to it."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    source = tmp_path / "source"
    GPTNeoXForCausalLM(config).save_pretrained(source)
    state = load_file(source / "model.safetensors")
    state = {name.replace("lm_head", "embed_out"): tensor for name, tensor in state.items()}
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril()
    state["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, source / name)
    artifact, _, notes = made(source, recipe, tmp_path)
    assert "output layer" in notes["embed_out.weight"].why
    assert notes["gpt_neox.layers.0.attention.bias"].what == "left out"
    assert sum(check.name == "types" and "4" in check.detail for check in artifact.manifest.verification.checks) == 1
