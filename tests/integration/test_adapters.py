"""Merging a LoRA while streaming gives what peft's merge_and_unload gives."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "gguf"))
from family_cases import CASES, Case, make

from quantize.adapters import merge_adapter, open_adapter
from quantize.checkpoint import Checkpoint
from quantize.errors import BadInput, Unsupported

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
BY_NAME = {case.name: case for case in CASES}
LLAMA, TIED, GPT2 = BY_NAME["Llama 2"], BY_NAME["Llama 3.2 (tied)"], BY_NAME["GPT-2"]


def add_tokenizer(folder: Path) -> None:
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def make_adapter(case: Case, folder: Path, **settings: Any) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """-> (base folder, adapter folder, peft's merged weights by the base's names)."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, base = make(case, folder / "base")
    add_tokenizer(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **settings}))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder / "lora")
    merged = adapted.merge_and_unload().state_dict()
    return base, folder / "lora", {name: tensor.float().numpy() for name, tensor in merged.items()}


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        (LLAMA, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
        (
            LLAMA,
            {
                "target_modules": ["q_proj", "k_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"k_proj": 8},
                "alpha_pattern": {r"layers.1.self_attn.q_proj": 32},
            },
        ),
        (LLAMA, {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
        (LLAMA, {"target_modules": ["o_proj", "gate_proj"], "use_dora": True}),
        (TIED, {"target_modules": ["v_proj"]}),
        (GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}),
    ],
    ids=["plain", "rslora and patterns", "embedding and head", "dora", "tied", "input-first", "bias"],
)  # fmt: skip
def test_equals_peft(case: Case, settings: dict[str, Any], tmp_path: Path) -> None:
    base, lora, expected = make_adapter(case, tmp_path, **settings)
    source = Checkpoint.open(base)
    merged = merge_adapter(source, lora)
    assert merged.source == f"{base}+lora"
    assert set(merged.tensors) == set(source.tensors)
    changed = 0
    for name in merged.tensors:
        got = merged.read_float32(name)
        assert np.abs(got - expected[name]).max() < 1e-5, name
        changed += not np.array_equal(got, source.read_float32(name))
    assert changed >= 2  # and the rest is the base, bit for bit
    untouched = set(merged.tensors) - set(open_adapter(lora, source).deltas) - set(open_adapter(lora, source).replaced)
    assert all(np.array_equal(merged.read(name), source.read(name)) for name in untouched)


def test_bfloat16_base_is_rounded_once(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, lora, expected = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    file = base / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    source = Checkpoint.open(base)
    merged = merge_adapter(source, lora)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert merged.tensors[name].dtype == "BF16"
    delta = expected[name] - Checkpoint.open(base).read_float32(name)  # of the unrounded base: off by its rounding
    a, b = (load_file(lora / "adapter_model.safetensors")[f"base_model.model.{name[:-7]}.lora_{x}.weight"] for x in "AB")
    exact = torch.from_numpy(source.read_float32(name)) + 2.0 * (b @ a)
    assert torch.equal(torch.from_numpy(merged.read_float32(name)), exact.bfloat16().float())
    assert np.abs(delta).max() > 0.01


def test_a_lora_for_another_base_is_bad_input(tmp_path: Path) -> None:
    base, lora, _ = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    wider, deeper = tmp_path / "wider", tmp_path / "gpt2"
    make(Case("wider", "llama", {"hidden_size": 96, "num_key_value_heads": 4}), wider)
    make(GPT2, deeper)
    for folder in (wider, deeper):
        add_tokenizer(folder)
    with pytest.raises(BadInput, match=r"lora_A.*\[4, 64\].*\[96, 96\].*a LoRA for another base"):
        merge_adapter(Checkpoint.open(wider), lora)
    with pytest.raises(BadInput, match=r"no counterpart.*a LoRA for another base"):
        merge_adapter(Checkpoint.open(deeper), lora)
    assert base.is_dir()


def test_refusals(tmp_path: Path) -> None:
    base, lora, _ = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    source = Checkpoint.open(base)
    original = json.loads((lora / "adapter_config.json").read_text())

    def with_config(**changes: Any) -> Path:
        (lora / "adapter_config.json").write_text(json.dumps({**original, **changes}))
        return lora

    with pytest.raises(BadInput, match=r"no adapter_config\.json"):
        open_adapter(base, source)
    with pytest.raises(Unsupported, match="type IA3"):
        open_adapter(with_config(peft_type="IA3"), source)
    with pytest.raises(Unsupported, match="pissa"):
        open_adapter(with_config(init_lora_weights="pissa_niter_4"), source)
    with pytest.raises(Unsupported, match="target_parameters"):
        open_adapter(with_config(target_parameters=["mlp.experts.gate_up_proj"]), source)
    with pytest.raises(BadInput, match="r is 0"):
        open_adapter(with_config(r=0), source)
    with_config()
    shutil.move(lora / "adapter_model.safetensors", lora / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        open_adapter(lora, source)
