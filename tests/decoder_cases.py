"""One small model of each decoder family that transformers builds as a causal language model, for the methods
that quantize decoder layers: sizes that groups of 32 divide, the demo's tokenizer, all weights random."""

import shutil
from pathlib import Path
from typing import Any

from conftest import ROOT

SMALL = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
#: 4 experts, 2 a token, under the names that config classes have for them
MOE = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 64, "moe_num_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
MLA = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
SECTIONS = {
    "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
}  # fmt: skip
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
FOUR_HEADS: dict[str, Any] = {"num_key_value_heads": 4}
TIED = {"tie_word_embeddings": True}
SLIDING = {"sliding_window": 16}
HALVES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

#: model type -> settings over SMALL
CASES: dict[str, dict[str, Any]] = {
    "afmoe": {**MOE, "num_dense_layers": 1, "num_shared_experts": 1},
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "biogpt": FOUR_HEADS,
    "bitnet": {},
    "bloom": TIED,
    "codegen": {"n_inner": 128, "rotary_dim": 8},
    "cohere": TIED,
    "cohere2": {**TIED, **HALVES},
    "cohere2_moe": {**MOE, "prefix_dense_intermediate_size": 96},
    "cwm": HALVES,
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "deepseek_v2": {**MOE, **MLA, "head_dim": 16, "topk_method": "greedy"},
    "deepseek_v3": {**MOE, **MLA},
    "diffllama": {},
    "doge": {},
    "dots1": MOE,
    "ernie4_5": {},
    "ernie4_5_moe": {**MOE, "moe_layer_start_index": 1},
    "exaone4": HALVES,
    "exaone_moe": {**MOE, **HALVES, "is_moe_layer": [False, True]},
    "falcon": {"ffn_hidden_size": 256},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "falcon_mamba": {"intermediate_size": 128, "state_size": 16, "time_step_rank": 32},
    "flex_olmo": MOE,
    "gemma": TIED,
    "gemma2": {**TIED, **SLIDING},
    "gemma3_text": {**TIED, **HALVES},
    "gemma4_text": {
        **TIED, **HALVES, "vocab_size_per_layer_input": 4096, "hidden_size_per_layer_input": 32,
        "global_head_dim": 32, "num_global_key_value_heads": 2,
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": MOE,
    "glm4_moe_lite": {**MOE, **MLA},
    "gpt2": TIED,
    "gpt_bigcode": TIED,
    "gpt_neo": {**TIED, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gpt_neox": {},
    "gpt_oss": {**MOE, **HALVES},
    "gptj": {"n_inner": 128, "rotary_dim": 8},
    "granite": {},
    "granitemoe": MOE,
    "granitemoehybrid": {**MOE, **MAMBA, "layer_types": ["mamba", "attention"]},
    "granitemoeshared": {**MOE, "shared_intermediate_size": 64},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {**MOE, "num_shared_expert": [1, 1], "moe_topk": [2, 2]},
    "hy_v3": MOE,
    "internlm3": {},
    "jais2": {},
    "jamba": {**MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_dt_rank": 32, "use_mamba_kernels": False},
    "jetmoe": {**MOE, "kv_channels": 16, "num_key_value_heads": 2},
    "laguna": {**MOE, "num_attention_heads_per_layer": [4, 4]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {},
    "llama4_text": {**MOE, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2},
    "longcat_flash": {**MOE, **MLA, "num_layers": 2, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 96,
                      "zero_expert_num": 2},
    "mamba": {"intermediate_size": 128, "state_size": 16, "time_step_rank": 32},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 16},
    "mimo_v2_flash": {**MOE, "head_dim": 24, "v_head_dim": 16},
    "minicpm3": MLA,
    "minimax": {**MOE, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": MOE,
    "ministral": SLIDING,
    "ministral3": {},
    "mistral": {"sliding_window": None},
    "mixtral": {**MOE, "sliding_window": None},
    "modernbert-decoder": {"pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    "mpt": {**TIED, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {**MOE, "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3,
                   "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1,
                   "moe_shared_expert_intermediate_size": 32, "moe_latent_size": None},
    "olmo": {},
    "olmo2": {},
    "olmo3": HALVES,
    "olmoe": MOE,
    "opt": {**TIED, "ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 1},
    "persimmon": FOUR_HEADS,
    "phi": FOUR_HEADS,
    "phi3": {"original_max_position_embeddings": 256},
    "phimoe": {**MOE, "sliding_window": None},
    "qwen2": {},
    "qwen2_moe": MOE,
    "qwen3": {},
    "qwen3_5_text": {**DELTA, "rope_parameters": SECTIONS},
    "qwen3_5_moe_text": {**MOE, **DELTA, "rope_parameters": SECTIONS},
    "qwen3_moe": MOE,
    "qwen3_next": {**MOE, **DELTA},
    "recurrent_gemma": {**TIED, "block_types": ["recurrent", "attention"], "lru_width": 64,
                        "attention_window_size": 16},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": MOE,
    "stablelm": FOUR_HEADS,
    "starcoder2": {"sliding_window": None},
    "vaultgemma": {**TIED, **HALVES},
    "xglm": {**TIED, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "pad_token_id": 1},
    "youtu": MLA,
}  # fmt: skip
#: those that a quick test takes: dense, fused, transposed, experts one by one and in one tensor, recurrent
FEW = ("llama", "gpt2", "phi3", "qwen3_moe", "gpt_oss", "qwen3_next")


def make_decoder(model_type: str, folder: Path, **more: Any) -> Path:
    """A checkpoint of ``model_type`` in float32, as transformers saves it, with the demo's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[model_type]
    settings = {**SMALL, **CASES[model_type], **more}
    fixed = {name for name in settings if isinstance(getattr(made, name, None), property)}
    config = made(**{name: value for name, value in settings.items() if name not in fixed})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "A_log" not in name and not name.endswith(".D"):
                offset = 0.0 if name.endswith("bias") or "gemma" in model_type else 1.0
                parameter.copy_(offset + 0.2 * torch.randn(parameter.shape))
            elif parameter.ndim > 1 and "A_log" not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # by which experts are chosen
                buffer.copy_(0.1 * torch.randn(buffer.shape))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
    return folder
