"""Cases of families added in 2026: mixtures of experts and newer dense decoders."""

from typing import Any

import numpy as np
from family_case import TABLE, TIGHT, YARN, Case, Tensors

MIXTURE = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "moe_intermediate_size": 32, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24, "head_dim": 8,
}  # fmt: skip
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
FULL_YARN: dict[str, Any] = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
LONG = {
    "max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1 + i / 4 for i in range(4)], "long_factor": [2.0 + i / 4 for i in range(4)],
    },
}  # fmt: skip
GPT = ("intermediate_size", "num_key_value_heads")


def fuse(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Mixtral's experts as one tensor of gates and ups and one of downs, under transformers 5's names."""
    out: Tensors = {}
    for name, array in tensors.items():
        if ".experts." not in name:
            out[name.replace("block_sparse_moe.gate", "mlp.gate")] = array
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.block_sparse_moe.experts.", f"model.layers.{layer}.mlp.experts."
        w1, w2, w3 = (
            np.stack([tensors[f"{old}{x}.{part}.weight"] for x in range(config["num_local_experts"])])
            for part in ("w1", "w2", "w3")
        )
        out[new + "gate_up_proj"], out[new + "down_proj"] = np.concatenate((w1, w3), axis=1), w2
    return out, config


def headless(prefix: str, name: str) -> Any:
    """What the base model alone saves: no head, and names without ``prefix``."""

    def rewrite(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        kept = {key.removeprefix(prefix): value for key, value in tensors.items() if "lm_head" not in key}
        return kept, {**config, "architectures": [name]}

    return rewrite


def published_kimi(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The first layer's MLP under its published name (transformers writes that of the mixtures)."""
    old, new = "model.layers.0.block_sparse_moe.", "model.layers.0.mlp."
    return {name.replace(old, new): array for name, array in tensors.items()}, config


MORE: tuple[Case, ...] = (
    Case(
        "Mixtral (fused experts)", "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        rewrite=fuse, reference="transformers' Mixtral, its experts fused", architecture="MixtralForCausalLM",
    ),
    Case("GPT-NeoX 20B (gelu_fast)", "gpt_neox", {"hidden_act": "gelu_fast"}, TABLE,
    without=("num_key_value_heads",)),
    Case(
        "Llama without a head", "llama", {"tie_word_embeddings": True},
        rewrite=headless("model.", "LlamaModel"),
        reference="transformers' Llama, whose head is its embedding", architecture="LlamaModel",
    ),
    Case(
        "BLOOM without a head", "bloom", {"tie_word_embeddings": True}, TABLE, without=GPT,
        rewrite=headless("transformer.", "BloomModel"),
        reference="transformers' BLOOM, whose head is its embedding", architecture="BloomModel",
    ),

    Case("DeepSeek-V3", "deepseek_v3", {
        **MIXTURE, **LATENT, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    }),
    Case("DeepSeek-V3 (full-rank queries)", "deepseek_v3", {
        **MIXTURE, **LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
    }),
    Case("DeepSeek-V3.2 (few tokens chosen)", "deepseek_v32", {
        **MIXTURE, **LATENT, "n_group": 1, "topk_group": 1, "index_n_heads": 16, "index_head_dim": 64,
        "index_topk": 16,
    }),
    Case("Kimi Linear", "kimi_linear", {
        "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "model_max_length": 128,
        "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
        "linear_head_dim": 16, "linear_num_heads": 4, "num_experts": 4, "num_experts_per_token": 2,
        "num_shared_experts": 2, "moe_intermediate_size": 32,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    }, 2 * TIGHT, rewrite=published_kimi, architecture="KimiLinearForCausalLM"),
    Case("Apertus", "apertus", {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
        },
    }),
    Case("OLMo", "olmo", {"clip_qkv": 0.5}),
    Case("OLMo 3", "olmo3", {
        "num_hidden_layers": 4, "sliding_window": 16, "layer_types": SLIDING, "rope_parameters": FULL_YARN,
    }),
    Case("OLMoE", "olmoe", {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}),
    Case("ERNIE 4.5", "ernie4_5", {"head_dim": 32, "tie_word_embeddings": True}),
    Case("ERNIE 4.5 MoE", "ernie4_5_moe", {
        "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1,
        "moe_intermediate_size": 32, "moe_num_shared_experts": 2,
    }),
    Case("EXAONE 4 1.2B", "exaone4", {
        "sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": True,
    }),
    Case("EXAONE 4 32B (slides)", "exaone4", {"sliding_window": 16, "num_hidden_layers": 64}, 8 * TIGHT),
    Case("Seed-OSS", "seed_oss", {"head_dim": 32}),
    Case("Hunyuan", "hunyuan_v1_dense", {
        "head_dim": 32, "rope_parameters": {"rope_type": "dynamic", "alpha": 20.0, "rope_theta": 10000.0,
        "factor": 1.0},
    }),
    Case("Hunyuan MoE", "hunyuan_v1_moe", {"head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    Case("Arcee", "arcee", {"head_dim": 32}),
    Case("MiniMax-M2", "minimax_m2", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16,
    }),
    Case("Trinity (AFMoE)", "afmoe", {
        "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "layer_types": SLIDING,
        "mup_enabled": True,
        "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 2, "num_dense_layers": 1,
        "moe_intermediate_size": 32, "route_scale": 2.5,
    }),
    Case("Solar Open", "solar_open", {
        **MIXTURE, "first_k_dense_replace": 0, "head_dim": 32,
    }, without=("intermediate_size",)),
    Case("MiniCPM 3", "minicpm3", {**LATENT, "tie_word_embeddings": True}),
    Case("MiniCPM 3 (longrope)", "minicpm3", {**LATENT, **LONG}, length=96),
    Case("Cohere 2 MoE", "cohere2_moe", {
        "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "prefix_dense_intermediate_size": 80,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "num_shared_experts": 2, "expert_selection_fn": "sigmoid", "tie_word_embeddings": True,
    }),
    Case("Cohere 2 MoE (softmax, RMS)", "cohere2_moe", {
        "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
    }),
    Case("K-EXAONE", "exaone_moe", {
        "num_hidden_layers": 4, "sliding_window": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }),
    Case("StarCoder", "gpt_bigcode", {"tie_word_embeddings": True}, TABLE, without=GPT),
    Case("StarCoder (keys for each head)", "gpt_bigcode", {"multi_query": False}, TABLE, without=GPT),
    Case("Mellum 2", "mellum", {
        "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "layer_types": SLIDING,
        "rope_parameters": FULL_YARN,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    }),
    Case("Laguna", "laguna", {
        "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "layer_types": SLIDING[::-1],
        "num_attention_heads_per_layer": [4, 8, 8, 4],
        "rope_parameters": {
            "full_attention": {**YARN, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
        },
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48, "moe_routed_scaling_factor": 2.5,
    }),
    Case("Youtu", "youtu", {**LATENT, "tie_word_embeddings": True}),
    Case("Hunyuan 3", "hy_v3", {  # of four experts the biases drawn would choose the same in another order
        "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 2,
        "moe_intermediate_size": 32,
    }),
    Case("MiMo V2 Flash", "mimo_v2_flash", {
        "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 24, "v_head_dim": 16,
        "sliding_window": 16, "layer_types": SLIDING[::-1],
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    }),
    Case("dots.llm1", "dots1", {**MIXTURE, "num_key_value_heads": 4, "norm_topk_prob": False}),
)  # fmt: skip
