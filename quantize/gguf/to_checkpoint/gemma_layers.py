"""config.json of what a GGUF holds, for Gemma 3n and 4."""

from typing import Any

from quantize.gguf.to_checkpoint.metadata import Metadata, exact
from quantize.gguf.to_checkpoint.recurrent import named, used

Config = dict[str, Any]
UNCAPPED = 1e8  # a cap above it was written for none
GELU = "gelu_pytorch_tanh"


def _shared(m: Metadata, config: Config) -> Config:
    sliding = m.find("attention.sliding_window_pattern") or []
    cap = m.number("final_logit_softcapping")
    return {
        "hidden_activation": GELU,
        "attention_bias": False,
        "layer_types": ["sliding_attention" if each else "full_attention" for each in sliding],
        "sliding_window": m.integer("attention.sliding_window"),
        "num_kv_shared_layers": m.find("attention.shared_kv_layers") or 0,
        "hidden_size_per_layer_input": m.find("embedding_length_per_layer_input") or 0,
        "vocab_size_per_layer_input": config["vocab_size"],
        "final_logit_softcapping": cap if cap < UNCAPPED else None,
    }


def _thetas(m: Metadata, config: Config) -> tuple[float, float]:
    """Of the layers that attend to all, and of those with a window."""
    config.pop("rope_theta")
    bases = (("rope.freq_base", 1e6), ("rope.freq_base_swa", 1e4))
    full, sliding = (float(m.number(key, usual)) for key, usual in bases)
    return full, sliding


def gemma3n(m: Metadata, config: Config) -> Config:
    full, sliding = _thetas(m, config)
    scales = m.find("activation_sparsity_scale") or []
    more = {
        **_shared(m, config),
        "altup_active_idx": m.find("altup.active_idx") or 0,
        "altup_num_inputs": m.integer("altup.num_inputs"),
        "altup_correct_scale": True,
        "laurel_rank": m.file.tensors["blk.0.laurel_l.weight"].shape[0],
        "activation_sparsity_pattern": [0.95 if each > 0 else 0.0 for each in scales],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": full},
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
        },
    }
    return named("Gemma3nForCausalLM", "gemma3n_text", config, **more)


def gemma4(m: Metadata, config: Config) -> Config:
    full, sliding = _thetas(m, config)
    divisors = m.file.dequantize("rope_freqs.weight")
    more = _shared(m, config) | {
        "head_dim": m.integer("attention.key_length_swa"),
        "global_head_dim": m.integer("attention.key_length"),
        "attention_k_eq_v": sum(m.layers_with("attn_v.weight")) < sum(m.layers_with("attn_k.weight")),
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": exact(float((divisors == 1).mean())),
                "rope_theta": full,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
        },
    }
    groups, widths = m.find("attention.head_count_kv"), m.find("feed_forward_length")
    if isinstance(groups, list) and len(set(groups)) > 1:
        of = dict(zip(more["layer_types"], groups, strict=True))
        more["num_global_key_value_heads"] = of["full_attention"]
        config["num_key_value_heads"] = of["sliding_attention"]
    if isinstance(widths, list) and len(set(widths)) > 1:
        more["use_double_wide_mlp"] = True
        config["intermediate_size"] = min(widths)
    if m.find("expert_count"):
        more |= {
            "enable_moe_block": True,
            "num_experts": m.experts(),
            "top_k_experts": used(m)["num_experts_per_tok"],
            "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        }
    return named("Gemma4ForCausalLM", "gemma4_text", config, **more)
