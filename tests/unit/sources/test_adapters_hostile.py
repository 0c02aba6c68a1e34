"""adapter_config.json and the adapter's weights with one place changed: opened, or refused in one line."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, faults, mutations, sample
from safetensors.numpy import save_file

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.sources.adapter import open_adapter
from quantize.sources.opening import open_checkpoint

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "lm_head"],
    "bias": "none",
    "modules_to_save": ["embed_tokens"], "rank_pattern": {"q_proj": 4, r"layers\.1\.self_attn\.v_proj": 4},
    "alpha_pattern": {},
    "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "ensure_weight_tying": False,
    "lora_bias": False,
    "init_lora_weights": True, "layers_to_transform": None, "base_model_name_or_path": "org/base",
    "task_type": "CAUSAL_LM",
    "target_parameters": None, "trainable_token_indices": None, "megatron_config": None, "use_qalora": False,
}  # fmt: skip
#: patterns that are none, or that Python's engine would take for ever over
PATTERNS = (
    "(",
    "*",
    "(a+)+$",
    r"(\w+\.?)+x",
    r"(\w+)*\1",
    "(" * 5000,
    "[" * 2000,
    "a{99999999999}",
    "x" * 5000,
    ".*.*.*.*.*.*.*x",
    "\ud7ff",
)


@pytest.fixture
def base(demo_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(demo_checkpoint)


@pytest.fixture
def folder(base: Checkpoint, tmp_path: Path) -> Path:
    zeros = np.zeros
    tensors = {
        "base_model.model.model.embed_tokens.weight": zeros(
            base.tensors["model.embed_tokens.weight"].shape, np.float32
        )
    }
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "lm_head"):
        rows = base.config["vocab_size"] if module == "lm_head" else base.tensors[f"{module}.weight"].shape[0]
        tensors[f"base_model.model.{module}.lora_A.weight"] = zeros(
            (4, base.config["hidden_size"]), np.float32
        )
        tensors[f"base_model.model.{module}.lora_B.weight"] = zeros((rows, 4), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    open_adapter(tmp_path, base)
    return tmp_path


def configs() -> Iterator[tuple[str, bytes]]:
    for label, changed in mutations(CONFIG):
        yield label, json.dumps(changed).encode()
    for pattern in PATTERNS:
        yield f"pattern {pattern[:20]}", json.dumps(CONFIG | {"alpha_pattern": {pattern: 8}}).encode()
        yield f"whole {pattern[:20]}", json.dumps(CONFIG | {"modules_to_save": [pattern]}).encode()
    yield from damaged(json.dumps(CONFIG, indent=1).encode(), 500)


def headers(folder: Path) -> Iterator[tuple[str, bytes]]:
    raw = (folder / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for label, changed in mutations(header):
        text = json.dumps(changed).encode()
        yield label, struct.pack("<Q", len(text)) + text + raw[8 + length :]
    name = "base_model.model.lm_head.lora_A.weight"
    for other in (
        "lora_A",
        ".lora_A.weight",
        "x.lora_A.weight",
        "base_model.model.",
        "lm_head.lora_magnitude_vector",
        "a\nb",
        "." * 900,
    ):
        changed = {(other if key == name else key): value for key, value in header.items()}
        text = json.dumps(changed).encode()
        yield f"named {other[:30]!r}", struct.pack("<Q", len(text)) + text + raw[8 + length :]


def opening(folder: Path, base: Checkpoint, name: str) -> Callable[[bytes], object]:
    def attempt(raw: bytes) -> object:
        (folder / name).write_bytes(raw)
        return open_adapter(folder, base)

    return attempt


def test_adapter_configs_changed_in_one_place(folder: Path, base: Checkpoint) -> None:
    assert faults(opening(folder, base, "adapter_config.json"), sample(configs(), 400), seconds=10) == []


def test_adapter_weights_changed_in_one_place(folder: Path, base: Checkpoint) -> None:
    assert (
        faults(opening(folder, base, "adapter_model.safetensors"), sample(headers(folder), 100), seconds=10)
        == []
    )


@pytest.mark.long
def test_every_change_of_an_adapter(folder: Path, base: Checkpoint) -> None:
    found = faults(opening(folder, base, "adapter_config.json"), configs(), seconds=10)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert (
        found + faults(opening(folder, base, "adapter_model.safetensors"), headers(folder), seconds=10) == []
    )


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\w+\.?)+x", r"(\w+)\1*", ".*.*.*.*x", "x" * 600])
def test_a_pattern_that_could_run_for_ever_is_refused(pattern: str, folder: Path, base: Checkpoint) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"rank_pattern": {pattern: 8}}))
    with pytest.raises(BadInput, match="could run forever"):
        open_adapter(folder, base)
