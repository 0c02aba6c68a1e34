"""config.json of what a GGUF holds, for models of states, alone or beside attention."""

from collections.abc import Callable
from typing import Any

from quantize.gguf.to_checkpoint.metadata import Metadata, exact

Config = dict[str, Any]
#: architectures whose layers are states only
WITHOUT_ATTENTION = frozenset({"mamba", "mamba2"})


def named(architecture: str, kind: str, config: Config, **more: Any) -> Config:
    return {"architectures": [architecture], "model_type": kind, **config, **more}


def used(m: Metadata) -> Config:
    return {"num_experts_per_tok": m.integer("expert_used_count", most=m.experts())}


def partial(m: Metadata, config: Config) -> float:
    """How much of a head is rotated."""
    return float(m.integer("rope.dimension_count", config["head_dim"]) / config["head_dim"])


def _delta_net(m: Metadata, config: Config) -> Config:
    heads = m.integer("ssm.time_step_rank")
    attends = m.layers_with("attn_q.weight")
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "partial_rotary_factor": partial(m, config),
        "layer_types": ["full_attention" if each else "linear_attention" for each in attends],
        "linear_conv_kernel_dim": m.integer("ssm.conv_kernel"),
        "linear_key_head_dim": m.integer("ssm.state_size"),
        "linear_num_key_heads": m.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": m.integer("ssm.inner_size") // heads,
    }


def _mixture(m: Metadata) -> Config:
    return {
        "num_experts": m.experts(),
        **used(m),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length"),
    }


def _qwen3next(m: Metadata, config: Config) -> Config:
    more = {**_delta_net(m, config), **_mixture(m), "norm_topk_prob": True, "mlp_only_layers": []}
    return named("Qwen3NextForCausalLM", "qwen3_next", config, **more, decoder_sparse_step=1)


def _qwen35(m: Metadata, config: Config) -> Config:
    return named("Qwen3_5ForCausalLM", "qwen3_5_text", config, **_delta_net(m, config))


def _qwen35moe(m: Metadata, config: Config) -> Config:
    more = {**_delta_net(m, config), **_mixture(m)}
    return named("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", config, **more)


def _convolutions(m: Metadata, config: Config) -> Config:
    config["norm_eps"] = config.pop("rms_norm_eps")
    config.pop("head_dim")
    attends = m.layers_with("attn_q.weight")
    return {
        "layer_types": ["full_attention" if each else "conv" for each in attends],
        "conv_L_cache": m.integer("shortconv.l_cache"),
        "conv_bias": False,
    }


def _lfm2(m: Metadata, config: Config) -> Config:
    more = {**_convolutions(m, config), "block_auto_adjust_ff_dim": False}
    return named("Lfm2ForCausalLM", "lfm2", config, **more)


def _lfm2moe(m: Metadata, config: Config) -> Config:
    more = {
        **_convolutions(m, config),
        "num_experts": m.experts(),
        **used(m),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "num_dense_layers": m.find("leading_dense_block_count") or 0,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }
    return named("Lfm2MoeForCausalLM", "lfm2_moe", config, **more)


def _states(m: Metadata, config: Config) -> Config:
    return {
        "hidden_act": "silu",
        "layer_norm_epsilon": config.pop("rms_norm_eps"),
        "state_size": m.integer("ssm.state_size"),
        "conv_kernel": m.integer("ssm.conv_kernel"),
        "expand": 2,
        "use_bias": False,
        "use_conv_bias": True,
    }


def _mamba(m: Metadata, config: Config) -> Config:
    more = _states(m, config) | {
        "intermediate_size": m.integer("ssm.inner_size"),
        "time_step_rank": m.integer("ssm.time_step_rank"),
    }
    if m.find("ssm.dt_b_c_rms"):
        more["mixer_rms_eps"] = more["layer_norm_epsilon"]
        return named("FalconMambaForCausalLM", "falcon_mamba", config, **more)
    return named("MambaForCausalLM", "mamba", config, **more)


def _mamba2(m: Metadata, config: Config) -> Config:
    heads = m.integer("ssm.time_step_rank")
    more = {
        **_states(m, config),
        "num_heads": heads,
        "head_dim": m.integer("ssm.inner_size") // heads,
        "n_groups": m.integer("ssm.group_count", 1),
    }
    return named("Mamba2ForCausalLM", "mamba2", config, **more)


def number(m: Metadata, key: str, default: float) -> float:
    return exact(m.number(key, default))


RECURRENT: dict[str, Callable[[Metadata, Config], Config]] = {
    "qwen3next": _qwen3next,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2moe,
    "mamba": _mamba,
    "mamba2": _mamba2,
}
