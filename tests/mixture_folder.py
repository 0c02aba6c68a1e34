"""Mixtures of experts in the layouts that checkpoints come in, of the same weights."""

import json
import shutil
from pathlib import Path

import numpy as np
from conftest import ROOT

from quantize.checkpoint.tensors import Entry, header_bytes, write_folder

HIDDEN, VOCABULARY, LAYERS = 256, 4096, 2
LAYOUTS = ("one by one", "in one tensor")
Tensors = dict[str, np.ndarray]


def write_config(folder: Path, width: int, experts: int, layers: int = LAYERS, hidden: int = HIDDEN) -> None:
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": hidden,
        "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128, "head_dim": 64, "vocab_size": VOCABULARY,
        "num_local_experts": experts, "num_experts_per_tok": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu", "sliding_window": None,
        "tie_word_embeddings": False, "dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)


def shapes(
    layout: str, width: int, experts: int, layers: int = LAYERS, hidden: int = HIDDEN
) -> dict[str, tuple[int, ...]]:
    """Of a Mixtral, by name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for index in range(layers):
        layer = f"model.layers.{index}."
        for name, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
        found[f"{layer}input_layernorm.weight"] = found[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        if layout == "in one tensor":
            found[f"{layer}mlp.gate.weight"] = (experts, hidden)
            found[f"{layer}mlp.experts.gate_up_proj"] = (experts, 2 * width, hidden)
            found[f"{layer}mlp.experts.down_proj"] = (experts, hidden, width)
            continue
        found[f"{layer}block_sparse_moe.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            inside = f"{layer}block_sparse_moe.experts.{expert}."
            found[f"{inside}w1.weight"] = found[f"{inside}w3.weight"] = (width, hidden)
            found[f"{inside}w2.weight"] = (hidden, width)
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def fused(tensors: Tensors, experts: int) -> Tensors:
    """Those of "one by one" as "in one tensor" holds them."""
    out: Tensors = {}
    for name, array in tensors.items():
        layer, found, rest = name.partition("block_sparse_moe.")
        if not found:
            out[name] = array
        elif rest == "gate.weight":
            out[f"{layer}mlp.gate.weight"] = array
        elif rest == "experts.0.w1.weight":
            each = [f"{layer}block_sparse_moe.experts.{expert}." for expert in range(experts)]
            both = [np.concatenate([tensors[e + "w1.weight"], tensors[e + "w3.weight"]]) for e in each]
            out[f"{layer}mlp.experts.gate_up_proj"] = np.stack(both)
            out[f"{layer}mlp.experts.down_proj"] = np.stack([tensors[e + "w2.weight"] for e in each])
    return out


def write_mixture(folder: Path, layout: str, width: int = 512, experts: int = 4) -> Tensors:
    """A checkpoint of random weights, the same in every layout, in bfloat16; -> their bits."""
    random = np.random.default_rng(11)
    tensors = {
        name: (random.normal(0, 0.05, shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        for name, shape in shapes("one by one", width, experts).items()
    }
    if layout == "in one tensor":
        tensors = fused(tensors, experts)
    folder.mkdir(parents=True, exist_ok=True)
    rewrite(folder, tensors)
    write_config(folder, width, experts)
    return tensors


def rewrite(folder: Path, tensors: Tensors) -> None:
    entries = [Entry(name, "BF16", array.shape) for name, array in tensors.items()]
    write_folder(folder, entries, tensors.__getitem__)


def write_empty_mixture(folder: Path, layout: str, width: int, experts: int, hidden: int) -> int:
    """One layer of zeros, which take no room on most disks; -> bytes of its largest tensor of all experts."""
    folder.mkdir(parents=True)
    found = shapes(layout, width, experts, 1, hidden)
    entries = [Entry(name, "BF16", shape) for name, shape in found.items()]
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header_bytes(entries))
        file.truncate(file.tell() + sum(entry.size_bytes for entry in entries))
    write_config(folder, width, experts, 1, hidden)
    return 2 * experts * width * hidden
