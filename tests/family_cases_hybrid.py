"""Cases of families: text models of those that also see, latent and linear attention, states, mixtures."""

from family_case import TABLE, YARN, Case

VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1, "num_heads": 2,
    "num_attention_heads": 2, "out_hidden_size": 64, "image_size": 32, "patch_size": 16, "head_dim": 16,
    "num_position_embeddings": 4, "deepstack_visual_indexes": [0], "vision_use_head": False,
}  # fmt: skip
#: starts of the names of tensors that are no part of a text model
TOWERS = ("vision_tower.", "visual.", "model.visual.", "multi_modal_projector.", "vision_model.")
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = {"head_dim": 32, "tie_word_embeddings": True}
#: keys of a model with attention that one of states alone does not have
STATES = (
    "intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
    "tie_word_embeddings",
)  # fmt: skip
DELTA = {
    "head_dim": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25,
    "mrope_section": [2, 1, 1]},
}  # fmt: skip
MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
SCALES = {
    "attention_multiplier": 0.2, "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_expand": 2,
}  # fmt: skip
LAYERS = ["mamba", "attention", "mamba"]
NEMOTRON = {
    "num_hidden_layers": 4, "mamba_num_heads": 6, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2,
    "head_dim": 16,
}  # fmt: skip
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "tie_word_embeddings": True, "sliding_window": 16,
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 160,
}  # fmt: skip
LAST_FULL = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
HYBRIDS: tuple[Case, ...] = (
    Case(
        "Gemma 3 (4B and up)",
        "gemma3",
        {**GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16},
        TABLE,
        vision=VISION,
    ),
    Case("Qwen2.5-VL", "qwen2_5_vl", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
    "mrope_section": [2, 3, 3]}, "rms_norm_eps": 1e-8}, vision=VISION),
    Case("Qwen3-VL", "qwen3_vl", {"head_dim": 32, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5],
    "mrope_interleaved": True}}, vision=VISION),
    Case(
        "Mistral Small 3.1",
        "mistral3",
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        vision=VISION,
    ),
    Case(
        "Ministral 3",
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {**YARN, "original_max_position_embeddings": 16, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
    ),
    Case(
        "Granite MoE",
        "granitemoe",
        {"attention_multiplier": 0.2, "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
        "logits_scaling": 3.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    Case(
        "Granite MoE (shared expert)",
        "granitemoeshared",
        {"attention_multiplier": 0.2, "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
        "logits_scaling": 3.0, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 48},
    ),
    Case("Nemotron", "nemotron", {}),
    Case("GLM-4.5", "glm4_moe", {**EXPERTS, "head_dim": 32, "use_qk_norm": True, "attention_bias": True,
    "routed_scaling_factor": 2.5}),
    Case(
        "GLM-4.7-Flash",
        "glm4_moe_lite",
        {**EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 24, "head_dim": 8, "rms_norm_eps": 1e-6},
    ),
    Case("Qwen3-Next", "qwen3_next", {**DELTA, **MOE, "num_hidden_layers": 5}),
    Case("Qwen3.5", "qwen3_5_text", {**DELTA, "num_hidden_layers": 5}),
    Case("Qwen3.5 (with images)", "qwen3_5", {**DELTA, "num_hidden_layers": 4}, vision=VISION),
    Case("Qwen3.5-MoE", "qwen3_5_moe_text", {**DELTA, **MOE, "num_hidden_layers": 4}),
    Case(
        "gpt-oss",
        "gpt_oss",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
        "rope_parameters": {**YARN, "truncate": True}},
    ),
    Case("LFM2", "lfm2", {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3,
    "block_multiple_of": 32}),
    Case("LFM2-MoE", "lfm2_moe", {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1,
    "tie_word_embeddings": True}),
    Case(
        "Llama 4",
        "llama4_text",
        {"num_local_experts": 4, "head_dim": 16, "intermediate_size": 48, "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 2, "num_hidden_layers": 4},
    ),
    Case("Mamba", "mamba", {"state_size": 16}, without=STATES),
    Case("FalconMamba", "falcon_mamba", {"state_size": 16, "layer_norm_epsilon": 1e-6}, without=STATES),
    Case("Mamba 2", "mamba2", {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    without=STATES),
    Case("Granite 4 (hybrid)", "granitemoehybrid", {**SCALES, **MAMBA, "layer_types": LAYERS,
    "num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2,
    "shared_intermediate_size": 48}),
    Case("Granite 4 (hybrid, dense)", "granitemoehybrid", {**SCALES, **MAMBA, "layer_types": LAYERS,
    "num_hidden_layers": 3, "num_local_experts": 0, "num_experts_per_tok": 0,
    "shared_intermediate_size": 48}),
    Case("Granite 4 (attention)", "granitemoehybrid", {**SCALES, **MAMBA, "layer_types": ["attention"] * 2,
    "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48,
    "position_embedding_type": "rope"}),
    Case("Bamba", "bamba", {**MAMBA, "attn_layer_indices": [1], "num_hidden_layers": 3}),
    Case(
        "Jamba",
        "jamba",
        {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 0, "mamba_d_state": 16, "mamba_dt_rank": 4,
        "num_hidden_layers": 3},
    ),
    Case("Nemotron-H", "nemotron_h", {**NEMOTRON, "layers_block_type": ["mamba", "mlp", "attention", "mlp"]}),
    Case("Nemotron 3 (experts)", "nemotron_h", {**NEMOTRON,
    "layers_block_type": ["mamba", "moe", "attention", "moe"],
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48, "routed_scaling_factor": 2.5}),
    Case("Falcon-H1", "falcon_h1", {"head_dim": 16, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16,
    "mamba_n_groups": 2, "mamba_d_state": 16}),
    Case(
        "Falcon-H1 (multipliers)",
        "falcon_h1",
        {"head_dim": 16, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16,
        "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_rms_norm": True, "mamba_norm_before_gate": False,
        "lm_head_multiplier": 0.7, "embedding_multiplier": 2.5, "key_multiplier": 0.4,
        "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.3,
        "ssm_out_multiplier": 0.8, "mlp_multipliers": [0.9, 1.4], 
        "ssm_multipliers": [0.8, 0.9, 1.1, 1.2, 0.7]},
    ),
    Case("Gemma 4 (layers' own embeddings)", "gemma4_text", {**GEMMA4, "num_hidden_layers": 6,
    "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}, TABLE),
    Case("Gemma 4 (dense)", "gemma4_text", {**GEMMA4, "num_hidden_layers": 3, "attention_k_eq_v": True,
    "num_global_key_value_heads": 1, "final_logit_softcapping": 30.0, **LAST_FULL}, 3 * TABLE),
    Case("Gemma 4 (experts)", "gemma4_text", {**GEMMA4, "num_hidden_layers": 3, "attention_k_eq_v": True,
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    "num_global_key_value_heads": 1, **LAST_FULL}, 3 * TABLE),
    Case(
        "Gemma 3n",
        "gemma3n_text",
        {
            "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 16, "num_hidden_layers": 22,
            "intermediate_size": 2048, "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 160, "num_kv_shared_layers": 2,
            "laurel_rank": 64, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
        },
        10 * TABLE,  # 22 layers, the first ten of which cut off most of what GELU gives
        reference="transformers with llama.cpp's table of GELU and deviation over n - 1",
    ),
)  # fmt: skip
