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


def _sections(m: Metadata, config: Config) -> Config:
    """How many of the rotated pairs follow each position; without them transformers takes those of a head of
    256 values."""
    sections = m.find("rope.dimension_sections")
    pairs = config["head_dim"] // 2
    if not isinstance(sections, list) or not all(isinstance(each, int) and each >= 0 for each in sections):
        raise m.wrong("rope.dimension_sections", sections, "a list of counts")
    if not 0 < sum(sections) <= pairs:
        raise m.wrong("rope.dimension_sections", sections, f"1 to {pairs} pairs in all")
    scaling = config.get("rope_scaling", {"rope_type": "default"})
    return {"rope_scaling": {**scaling, "mrope_section": sections[:3]}}


def _qwen35(m: Metadata, config: Config) -> Config:
    more = {**_delta_net(m, config), **_sections(m, config)}
    return named("Qwen3_5ForCausalLM", "qwen3_5_text", config, **more)


def _qwen35moe(m: Metadata, config: Config) -> Config:
    more = {**_delta_net(m, config), **_mixture(m), **_sections(m, config)}
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


def _experts_by(m: Metadata) -> Config:
    return {"num_local_experts": m.experts(), **used(m)} if m.find("expert_count") else {}


def number(m: Metadata, key: str, default: float) -> float:
    return exact(m.number(key, default))


def multipliers(m: Metadata) -> Config:
    """Granite's."""
    return {
        "attention_multiplier": number(m, "attention.scale", 1.0),
        "embedding_multiplier": number(m, "embedding_scale", 1.0),
        "residual_multiplier": number(m, "residual_scale", 1.0),
        "logits_scaling": number(m, "logit_scale", 1.0),
    }


def _mamba2_mixer(m: Metadata, config: Config) -> Config:
    heads, inner = m.integer("ssm.time_step_rank"), m.integer("ssm.inner_size")
    return {
        "hidden_act": "silu",
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": m.integer("ssm.group_count", 1),
        "mamba_d_state": m.integer("ssm.state_size"),
        "mamba_d_conv": m.integer("ssm.conv_kernel"),
        "mamba_expand": inner / config["hidden_size"],
        "mamba_conv_bias": any(m.layers_with("ssm_conv1d.bias")),
        "mamba_proj_bias": False,
    }


def _whole(config: Config) -> Config:
    """transformers wants a whole number where it is one."""
    expand = config["mamba_expand"]
    return {**config, "mamba_expand": int(expand) if expand == int(expand) else expand}


def _granitehybrid(m: Metadata, config: Config) -> Config:
    more = _whole(_mamba2_mixer(m, config))
    attends = m.layers_with("attn_q.weight")
    if m.find("attention.scale") is None:  # Bamba, which has none of Granite's multipliers
        layers = [index for index, each in enumerate(attends) if each]
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        more |= {"attn_layer_indices": layers, "partial_rotary_factor": partial(m, config)}
        return named("BambaForCausalLM", "bamba", config, **more)
    config.pop("head_dim")
    shared = "expert_shared_feed_forward_length" if m.find("expert_count") else "feed_forward_length"
    more |= {
        "layer_types": ["attention" if each else "mamba" for each in attends],
        "shared_intermediate_size": m.integer(shared),
        "position_embedding_type": "rope" if m.find("rope.scaling.finetuned") else None,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        **_experts_by(m),
        **multipliers(m),
    }
    return named("GraniteMoeHybridForCausalLM", "granitemoehybrid", config, **more)


def _every(here: list[bool]) -> tuple[int, int]:
    """(period, offset) of those that are. A single one has the period of all."""
    first, *others = [index for index, each in enumerate(here) if each] or [0]
    return (others[0] - first if others else len(here), first)


def _jamba(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    period, offset = _every(m.layers_with("attn_q.weight"))
    sparse, first = _every(m.layers_with("ffn_gate_inp.weight"))
    more = {
        "hidden_act": "silu",
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "expert_layer_period": sparse,
        "expert_layer_offset": first,
        "num_experts": m.experts(),
        **used(m),
        "mamba_d_state": m.integer("ssm.state_size"),
        "mamba_d_conv": m.integer("ssm.conv_kernel"),
        "mamba_expand": m.integer("ssm.inner_size") // config["hidden_size"],
        "mamba_dt_rank": m.integer("ssm.time_step_rank"),
    }
    return named("JambaForCausalLM", "jamba", config, **more)


def _kinds(m: Metadata) -> list[str]:
    found = (m.layers_with(name) for name in ("ssm_in.weight", "attn_q.weight", "ffn_gate_inp.weight"))
    each = zip(*found, strict=True)
    return ["mamba" if s else "attention" if a else "moe" if e else "mlp" for s, a, e in each]


def _nemotron_h(m: Metadata, config: Config) -> Config:
    heads = m.integer("ssm.time_step_rank")
    kinds = _kinds(m)
    config["layer_norm_epsilon"] = config.pop("rms_norm_eps")
    more = {
        "layers_block_type": kinds,
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": heads,
        "mamba_head_dim": m.integer("ssm.inner_size") // heads,
        "ssm_state_size": m.integer("ssm.state_size"),
        "n_groups": m.integer("ssm.group_count", 1),
        "conv_kernel": m.integer("ssm.conv_kernel"),
        "use_conv_bias": any(m.layers_with("ssm_conv1d.bias")),
        "attention_bias": any(m.layers_with("attn_q.bias")),
        "mlp_bias": any(m.layers_with("ffn_up.bias")),
    }
    if "moe" in kinds:
        more |= {
            "n_routed_experts": m.experts(),
            **used(m),
            "moe_intermediate_size": m.integer("expert_feed_forward_length"),
            "moe_shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length"),
            "n_shared_experts": m.integer("expert_shared_count"),
            "norm_topk_prob": bool(m.find("expert_weights_norm")),
            "routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
            "n_group": 1,
            "topk_group": 1,
        }
    return named("NemotronHForCausalLM", "nemotron_h", config, **more)


def _falcon_h1(m: Metadata, config: Config) -> Config:
    """Its multipliers are in the weights, so all of them are one."""
    more = _mamba2_mixer(m, config)
    more.pop("mamba_expand")
    more |= {
        "mamba_d_ssm": m.integer("ssm.inner_size"),
        "mamba_rms_norm": m.has("blk.0.ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "mlp_multipliers": [1.0, 1.0],
        "ssm_multipliers": [1.0] * 5,
    }
    return named("FalconH1ForCausalLM", "falcon_h1", config, **more)


RECURRENT: dict[str, Callable[[Metadata, Config], Config]] = {
    "qwen3next": _qwen3next,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2moe,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "granitehybrid": _granitehybrid,
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
    "nemotron_h_moe": _nemotron_h,
    "falcon-h1": _falcon_h1,
}
