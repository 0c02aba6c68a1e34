"""Cases of families added in 2026: mixtures of experts and newer dense decoders."""

from typing import Any

from family_case import TIGHT, YARN, Case

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
MORE: tuple[Case, ...] = (
    Case("DeepSeek-V3", "deepseek_v3", {
        **MIXTURE, **LATENT, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    }),
    Case("DeepSeek-V3 (full-rank queries)", "deepseek_v3", {
        **MIXTURE, **LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
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
    Case("dots.llm1", "dots1", {**MIXTURE, "num_key_value_heads": 4, "norm_topk_prob": False}),
)  # fmt: skip
