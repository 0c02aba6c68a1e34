"""Every field of a config, a tokenizer's files and a header changed, one at a time: refused in one line, or converted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import HOSTILE, faults, mutations, sample

from quantize.errors import QuantwrightError

SMALL = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> dict[str, Path]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = {}
    for kind, own in MODELS.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | own)).to(torch.bfloat16)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_checkpoint / name, folder / name)
        made[kind] = folder
    return made


def copy_with(source: Path, folder: Path, **files: Any) -> Path:
    """A folder with links to the source's files, except those given, whose content is given (as JSON)."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def check_all(folder: Path) -> None:
    from quantize.commands.jobs import _check_model

    _check_model(str(folder), None, False)


def convert_to_gguf(folder: Path) -> None:
    from quantize.convert import convert

    convert(folder, "gguf-q4_k_m", folder.parent / "out", verify="none", force=True)


def warmed(action: Callable[[Path], None], folder: Path) -> None:
    """Import here what the children need, once."""
    action(folder)


def tell_and_build(folder: Path) -> None:
    """What is told of a model without transformers is what transformers makes of it; what it refuses is not told."""
    from quantize.checkpoint import Checkpoint
    from quantize.hf.names import _built_layers, _find_layers
    from quantize.hf.plain_decoders import parameters

    checkpoint = Checkpoint.open(folder)
    if parameters(checkpoint.config) is None:
        return
    told = _find_layers(checkpoint)
    try:
        assert told == _built_layers(checkpoint)
    except QuantwrightError as error:
        raise AssertionError(str(error)) from error


ACTIONS = {"check": check_all, "gguf": convert_to_gguf, "told": tell_and_build}


def changed_configs(folder: Path, action: str) -> list[tuple[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    if action != "told":  # fields that older and other models have
        config |= {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}
        config |= {"quantization_config": None, "sliding_window_pattern": 6, "num_local_experts": None, "head_dim": 16}
    return list(mutations(config, HOSTILE))


def try_configs(models: dict[str, Path], kind: str, action: str, tmp_path: Path, count: int | None) -> None:
    source, act = models[kind], ACTIONS[action]
    inputs = changed_configs(source, action)
    warmed(act, copy_with(source, tmp_path / "model"))
    found = faults(
        lambda config: act(copy_with(source, tmp_path / "model", config__json=config)),
        inputs if count is None else sample(inputs, count),
        seconds=60,
    )
    assert found == [], "\n".join(map(str, found))


@pytest.mark.parametrize(("kind", "action"), [("llama", "check"), ("qwen2_moe", "gguf"), ("gemma3_text", "told")])
def test_configs(models: dict[str, Path], kind: str, action: str, tmp_path: Path) -> None:
    try_configs(models, kind, action, tmp_path, 30)


@pytest.mark.long
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_configs_all(models: dict[str, Path], kind: str, action: str, tmp_path: Path) -> None:
    try_configs(models, kind, action, tmp_path, None)
