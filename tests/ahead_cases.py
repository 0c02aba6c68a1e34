"""Checkpoints with tensors that predict further tokens, as the families' published ones name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from decoder_cases import make_decoder

#: what is beside a layer that predicts: 0 a norm, 1 an embedding, 2 joins two states
ENDS = {"eh_proj": 2, "enorm": 0, "hnorm": 0}
BEHIND = {**ENDS, "shared_head.norm": 0, "embed_tokens": 1, "shared_head.head": 1}
QWEN = {"fc": 2, "pre_fc_norm_embedding": 0, "pre_fc_norm_hidden": 0, "norm": 0}
ERNIE = {"mtp_linear_proj.0": 2, "mtp_emb_norm.0": 0, "mtp_hidden_norm.0": 0}
#: model type -> the prefix of such a layer, that of what is beside it, and this
AHEAD: dict[str, tuple[str, str, dict[str, int]]] = {
    "deepseek_v3": ("model.layers.2.", "model.layers.2.", BEHIND),
    "glm4_moe": ("model.layers.2.", "model.layers.2.", BEHIND),
    "glm4_moe_lite": ("model.layers.2.", "model.layers.2.", BEHIND),
    "hy_v3": ("model.layers.2.", "model.layers.2.", {**ENDS, "final_layernorm": 0}),
    "cohere2_moe": ("model.layers.2.", "model.layers.2.", BEHIND),
    "solar_open": ("model.layers.2.", "model.layers.2.", {**ENDS, "shared_head.norm": 0}),
    "qwen3_next": ("mtp.layers.0.", "mtp.", QWEN),
    "qwen3_5_text": ("mtp.layers.0.", "mtp.", QWEN),
    "qwen3_5_moe_text": ("mtp.layers.0.", "mtp.", QWEN),
    "exaone_moe": ("mtp.layers.0.", "mtp.", QWEN),
    "ernie4_5_moe": ("model.mtp_block.0.", "model.", ERNIE),
    "mimo_v2_flash": (
        "model.mtp.layers.0.",
        "model.mtp.layers.0.",
        {**ENDS, "final_layernorm": 0, "pre_mlp_layernorm": 0},
    ),
    "nemotron_h": ("mtp.layers.0.", "mtp.layers.0.", ENDS),
}
#: whose layer that predicts has one MLP, also where the others have experts
DENSE = {"exaone_moe", "mimo_v2_flash"}
#: whose GGUF keeps it: llama.cpp reads it
KEPT = sorted(set(AHEAD) - {"ernie4_5_moe"})


def make_ahead(model_type: str, folder: Path, **more: Any) -> tuple[Path, set[str]]:
    """(a small checkpoint whose last layer is there once more as one that predicts, the names of its
    tensors)."""
    if model_type.startswith("qwen"):  # llama.cpp's delta net has attention in every fourth layer
        more = {"num_hidden_layers": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"], **more}
    if model_type == "solar_open":
        more = {"first_k_dense_replace": 0, **more}
    make_decoder(model_type, folder, **more)
    return folder, add_ahead(model_type, folder)


def add_ahead(model_type: str, folder: Path) -> set[str]:
    """The same to a checkpoint that is there."""
    from safetensors.numpy import load_file, save_file

    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(file)
    layer, beside, others = AHEAD[model_type]
    count = config.get("num_hidden_layers") or len(config["layers_block_type"])
    last = f"model.layers.{count - 1}."
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes = {0: (hidden,), 1: (vocabulary, hidden), 2: (hidden, 2 * hidden)}
    random = np.random.default_rng(1)
    found = {layer + name.removeprefix(last): t for name, t in tensors.items() if name.startswith(last)}
    if model_type in DENSE:
        found = {name: t for name, t in found.items() if ".mlp." not in name}
        wide = config["intermediate_size"]
        for name in ("gate_proj", "up_proj", "down_proj"):
            shape = (hidden, wide) if name == "down_proj" else (wide, hidden)
            found[f"{layer}mlp.{name}.weight"] = 0.1 * random.standard_normal(shape, np.float32)
    if model_type == "mimo_v2_flash":
        found.pop(f"{layer}post_attention_layernorm.weight")
    if model_type == "nemotron_h":  # attention, then experts
        q_proj, gate = (
            next(n for n in tensors if n.endswith(f".mixer.{e}.weight")) for e in ("q_proj", "gate")
        )
        attends, mixes = q_proj.partition("mixer.")[0], gate.partition("mixer.")[0]
        found = {layer + n.removeprefix(attends): t for n, t in tensors.items() if n.startswith(attends)}
        found |= {
            "mtp.layers.1." + n.removeprefix(mixes): t for n, t in tensors.items() if n.startswith(mixes)
        }
        found["mtp.layers.1.final_layernorm.weight"] = np.ones(hidden, np.float32)
    for name, kind in others.items():
        values = 0.1 * random.standard_normal(shapes[kind], np.float32) + (kind == 0)
        found[f"{beside}{name}.weight"] = values.astype(np.float32)
    save_file({**tensors, **found}, file, metadata={"format": "pt"})
    if layer.startswith("model.layers."):
        config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return set(found)
