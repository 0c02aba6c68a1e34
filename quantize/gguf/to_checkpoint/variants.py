"""config.json of what a GGUF holds, for newer decoders: their mixtures, and text models of those that also
see, which come back as the model of text alone."""

from collections.abc import Callable
from typing import Any

from quantize.gguf.to_checkpoint.metadata import Metadata, exact

Config = dict[str, Any]
#: architectures whose layers are states only
WITHOUT_ATTENTION: frozenset[str] = frozenset()


def _named(architecture: str, kind: str, config: Config, **more: Any) -> Config:
    return {"architectures": [architecture], "model_type": kind, **config, **more}


def _used(m: Metadata) -> Config:
    return {"num_experts_per_tok": m.integer("expert_used_count", most=m.experts())}


def _number(m: Metadata, key: str, default: float) -> float:
    return exact(m.number(key, default))


def _qwen2vl(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    return _named("Qwen2ForCausalLM", "qwen2", config, hidden_act="silu", use_sliding_window=False)


def _qwen3vl(m: Metadata, config: Config) -> Config:
    bias = m.has("blk.0.attn_q.bias")
    more = {"hidden_act": "silu", "attention_bias": bias, "use_sliding_window": False}
    return _named("Qwen3ForCausalLM", "qwen3", config, **more)


def _mistral3(m: Metadata, config: Config) -> Config:
    if m.find("attention.temperature_scale") is None:
        return _named("MistralForCausalLM", "mistral", config, hidden_act="silu", sliding_window=None)
    rope = {**config.pop("rope_scaling", {"rope_type": "default"}), "rope_theta": config.pop("rope_theta")}
    rope["llama_4_scaling_beta"] = exact(m.number("attention.temperature_scale"))
    if m.find("rope.scaling.yarn_log_multiplier") is not None:
        mscale = exact(m.number("rope.scaling.yarn_log_multiplier"))
        rope |= {"mscale": mscale, "mscale_all_dim": mscale}
        rope.pop("attention_factor", None)
    return _named("Ministral3ForCausalLM", "ministral3", config, hidden_act="silu", rope_parameters=rope)


def _multipliers(m: Metadata) -> Config:
    return {
        "attention_multiplier": _number(m, "attention.scale", 1.0),
        "embedding_multiplier": _number(m, "embedding_scale", 1.0),
        "residual_multiplier": _number(m, "residual_scale", 1.0),
        "logits_scaling": _number(m, "logit_scale", 1.0),
    }


def _granitemoe(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    more = {"hidden_act": "silu", "num_local_experts": m.experts(), **_used(m), **_multipliers(m)}
    if m.find("expert_shared_feed_forward_length") is None:
        return _named("GraniteMoeForCausalLM", "granitemoe", config, **more)
    shared = m.integer("expert_shared_feed_forward_length")
    name = "GraniteMoeSharedForCausalLM"
    return _named(name, "granitemoeshared", config, **more, shared_intermediate_size=shared)


def _partial(m: Metadata, config: Config) -> float:
    return float(m.integer("rope.dimension_count", config["head_dim"]) / config["head_dim"])


def _nemotron(m: Metadata, config: Config) -> Config:
    epsilon = config.pop("rms_norm_eps")
    more = {
        "hidden_act": "relu2",
        "norm_eps": epsilon,
        "partial_rotary_factor": _partial(m, config),
        "attention_bias": m.has("blk.0.attn_output.bias"),
        "mlp_bias": m.has("blk.0.ffn_up.bias"),
    }
    return _named("NemotronForCausalLM", "nemotron", config, **more)


def _glm4moe(m: Metadata, config: Config) -> Config:
    more = {
        "hidden_act": "silu",
        "partial_rotary_factor": _partial(m, config),
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "use_qk_norm": m.has("blk.0.attn_q_norm.weight"),
        "n_routed_experts": m.experts(),
        **_used(m),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "n_shared_experts": m.integer("expert_shared_count"),
        "first_k_dense_replace": m.find("leading_dense_block_count") or 0,
        "routed_scaling_factor": _number(m, "expert_weights_scale", 1.0),
        "norm_topk_prob": bool(m.find("expert_weights_norm")),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
    }
    return _named("Glm4MoeForCausalLM", "glm4_moe", config, **more)


VARIANTS: dict[str, Callable[[Metadata, Config], Config]] = {
    "qwen2vl": _qwen2vl,
    "qwen3vl": _qwen3vl,
    "mistral3": _mistral3,
    "granitemoe": _granitemoe,
    "nemotron": _nemotron,
    "glm4moe": _glm4moe,
}
