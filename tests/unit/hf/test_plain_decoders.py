"""Layers told from the config are those of the architecture as transformers builds it; what is odd is left to
be built."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.hf.names import _built_layers, find_layers
from quantize.hf.plain_decoders import DECODERS, parameters
from quantize.sources.opening import open_checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 48, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip


def make(folder: Path, demo: Path, family: str, **settings: Any) -> Checkpoint:
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **settings})).save_pretrained(
        folder
    )
    shutil.copy(demo / "tokenizer.json", folder)
    return open_checkpoint(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(DECODERS))
def test_told_is_what_is_built(tmp_path: Path, demo_checkpoint: Path, family: str, tied: bool) -> None:
    checkpoint = make(tmp_path, demo_checkpoint, family, tie_word_embeddings=tied)
    assert parameters(checkpoint.config) is not None
    told, built = find_layers(checkpoint), _built_layers(checkpoint)
    assert told == built
    assert list(told.linear) == list(built.linear)
    # Where the file does not say whether the head is tied, each model type has its own answer.
    config = {key: value for key, value in checkpoint.config.items() if key != "tie_word_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert find_layers(checkpoint) == _built_layers(checkpoint)


@pytest.mark.parametrize("settings", [{"attention_bias": True}, {"mlp_bias": True}])
def test_what_is_odd_is_built(tmp_path: Path, demo_checkpoint: Path, settings: dict[str, Any]) -> None:
    checkpoint = make(tmp_path, demo_checkpoint, "llama", **settings)
    assert parameters(checkpoint.config) is None
    assert find_layers(checkpoint) == _built_layers(checkpoint)


def test_weights_of_another_config_are_refused(tmp_path: Path, demo_checkpoint: Path) -> None:
    make(tmp_path, demo_checkpoint, "llama")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 64', '"intermediate_size": 96'))
    with pytest.raises(Unsupported, match="fetch config and weights of the same model"):
        find_layers(open_checkpoint(tmp_path))
