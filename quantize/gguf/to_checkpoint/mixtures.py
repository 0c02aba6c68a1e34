"""config.json of what a GGUF holds, for newer mixtures of experts."""

from collections.abc import Callable
from typing import Any

from quantize.gguf.to_checkpoint.decoders import (
    Config,
    count,
    latent,
    layer_types,
    mixture,
    named,
    number,
    rope_by_layer,
)
from quantize.gguf.to_checkpoint.metadata import Metadata

SOFTMAX = 1


def _used(m: Metadata, of: str = "num_experts", used: str = "num_experts_per_tok") -> Config:
    return {
        "hidden_act": "silu",
        of: (experts := m.experts()),
        used: m.integer("expert_used_count", most=experts),
    }


def _mlp_types(m: Metadata) -> list[str]:
    return ["sparse" if each else "dense" for each in m.layers_with("ffn_gate_inp.weight")]


def _sliding(m: Metadata, config: Config) -> Config:
    return {
        "sliding_window": m.integer("attention.sliding_window"),
        "layer_types": layer_types(m, config["num_hidden_layers"]),
    }


def _olmoe(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    more = {**_used(m), "attention_bias": False, "clip_qkv": None, "norm_topk_prob": False}
    return named("OlmoeForCausalLM", "olmoe", config, **more)


def _ernie(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    more = {
        **_used(m, "moe_num_experts", "moe_k"),
        "use_bias": False,
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "moe_num_shared_experts": count(m, "expert_shared_count"),
        "moe_layer_start_index": count(m, "leading_dense_block_count"),
        "moe_layer_end_index": config["num_hidden_layers"] - 1,
        "moe_layer_interval": 1,
    }
    return named("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", config, **more)


def _hunyuan(m: Metadata, config: Config) -> Config:
    more = {**_used(m, used="moe_topk"), "attention_bias": False}
    return named("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", config, **more)


def _minimax(m: Metadata, config: Config) -> Config:
    rotated = m.integer("rope.dimension_count")
    return named(
        "MiniMaxM2ForCausalLM", "minimax_m2", config, **_used(m, "num_local_experts"), rotary_dim=rotated
    )


def _dots1(m: Metadata, config: Config) -> Config:
    more = {**mixture(m), "hidden_act": "silu", "attention_bias": m.has("blk.0.attn_q.bias")}
    return named("Dots1ForCausalLM", "dots1", config, **more)


def _afmoe(m: Metadata, config: Config) -> Config:
    more = {
        **_used(m),
        **_sliding(m, config),
        "mup_enabled": True,
        "num_shared_experts": m.integer("expert_shared_count"),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "num_dense_layers": count(m, "leading_dense_block_count"),
        "route_scale": number(m, "expert_weights_scale", 1.0),
    }
    return named("AfmoeForCausalLM", "afmoe", config, **more)


def _cohere2moe(m: Metadata, config: Config) -> Config:
    epsilon = config.pop("rms_norm_eps")
    norm = "layer_norm_eps" if m.find("attention.layer_norm_rms_epsilon") is None else "rms_norm_eps"
    more = {
        **_used(m),
        **_sliding(m, config),
        norm: epsilon,
        "attention_bias": False,
        "logit_scale": number(m, "logit_scale"),
        "mlp_layer_types": _mlp_types(m),
        "prefix_dense_intermediate_size": config["intermediate_size"],
        "prefix_dense_sliding_window_pattern": 1,
        "intermediate_size": m.integer("expert_feed_forward_length"),
        "num_shared_experts": count(m, "expert_shared_count"),
        "expert_selection_fn": "softmax" if m.find("expert_gating_func") == SOFTMAX else "sigmoid",
        "norm_topk_prob": bool(m.find("expert_weights_norm")),
    }
    return named("Cohere2MoeForCausalLM", "cohere2_moe", {**config, **more})


def _exaone(m: Metadata, config: Config) -> Config:
    more = {
        **_used(m),
        **_sliding(m, config),
        "num_shared_experts": m.integer("expert_shared_count"),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "first_k_dense_replace": count(m, "leading_dense_block_count"),
        "mlp_layer_types": _mlp_types(m),
        "routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "norm_topk_prob": bool(m.find("expert_weights_norm")),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
    }
    return named("ExaoneMoeForCausalLM", "exaone_moe", config, **more)


def _mellum(m: Metadata, config: Config) -> Config:
    layers = config["num_hidden_layers"]
    slides = m.find("attention.sliding_window") is not None
    more: dict[str, Any] = {
        **_used(m, "num_local_experts"),
        **(_sliding(m, config) if slides else {"layer_types": ["full_attention"] * layers}),
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "mlp_layer_types": ["sparse"] * layers,
        "rope_parameters": rope_by_layer(m, config),
    }
    return named("MellumForCausalLM", "mellum", config, **more)


def _laguna(m: Metadata, config: Config) -> Config:
    layers, head = config["num_hidden_layers"], config["head_dim"]
    slides = m.find("attention.sliding_window") is not None
    heads = m.find("attention.head_count")
    rope = rope_by_layer(m, config)
    for kind, key in (("full", "dimension_count"), ("sliding", "dimension_count_swa")):
        rope[f"{kind}_attention"]["partial_rotary_factor"] = m.integer(f"rope.{key}", head) / head
    more: dict[str, Any] = {
        **_used(m),
        **(_sliding(m, config) if slides else {"layer_types": ["full_attention"] * layers}),
        "attention_bias": False,
        "gating": True,
        "num_attention_heads_per_layer": heads if isinstance(heads, list) else [heads] * layers,
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length"),
        "moe_routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "mlp_layer_types": _mlp_types(m),
        "rope_parameters": rope,
    }
    return named("LagunaForCausalLM", "laguna", config, **more)


def _hy_v3(m: Metadata, config: Config) -> Config:
    width = m.integer("expert_feed_forward_length")
    more = {
        **_used(m),
        "attention_bias": False,
        "mlp_bias": False,
        "moe_intermediate_size": width,
        "num_shared_experts": m.integer("expert_shared_feed_forward_length", width) // width,
        "router_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "mlp_layer_types": _mlp_types(m),
    }
    return named("HYV3ForCausalLM", "hy_v3", config, **more)


def _mimo2(m: Metadata, config: Config) -> Config:
    head = config["head_dim"]
    partial = m.integer("rope.dimension_count", head) / head
    rope = rope_by_layer(m, config)
    for parameters in rope.values():
        parameters["partial_rotary_factor"] = partial
    of_layer = m.find("attention.head_count_kv")
    more = {
        **_used(m, "n_routed_experts"),
        **_sliding(m, config),
        "num_key_value_heads": min(of_layer) if isinstance(of_layer, list) else of_layer,
        "attention_bias": False,
        "v_head_dim": m.integer("attention.value_length", head),
        "attention_value_scale": number(m, "attention.value_scale", 1.0),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "mlp_layer_types": _mlp_types(m),
        "rope_parameters": rope,
    }
    return named("MiMoV2FlashForCausalLM", "mimo_v2_flash", {**config, **more})


def _kimi(m: Metadata, config: Config) -> Config:
    found = latent(m, config)
    found.pop("rope_parameters")
    more: dict[str, Any] = {
        **found,
        **_used(m, used="num_experts_per_token"),
        "model_max_length": config.pop("max_position_embeddings"),
        "linear_head_dim": m.integer("kda.head_dim"),
        "linear_num_heads": config["num_attention_heads"],
        "linear_conv_kernel_dim": m.integer("ssm.conv_kernel"),
        "layer_types": [
            "full_attention" if each else "linear_attention" for each in m.layers_with("attn_kv_a_mqa.weight")
        ],
        "num_shared_experts": m.integer("expert_shared_count"),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "mlp_layer_types": _mlp_types(m),
        "routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "moe_renormalize": True,
        "pad_token_id": None,  # the class has one of its own tokenizer
        "num_expert_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
    }
    return named("KimiLinearForCausalLM", "kimi_linear", {**config, **more})


MIXTURES: dict[str, Callable[[Metadata, Config], Config]] = {
    "olmoe": _olmoe,
    "ernie4_5-moe": _ernie,
    "hunyuan-moe": _hunyuan,
    "minimax-m2": _minimax,
    "dots1": _dots1,
    "afmoe": _afmoe,
    "cohere2moe": _cohere2moe,
    "exaone-moe": _exaone,
    "mellum": _mellum,
    "laguna": _laguna,
    "hy_v3": _hy_v3,
    "mimo2": _mimo2,
    "kimi-linear": _kimi,
}
