"""config.json of what a GGUF holds, for newer decoders: their mixtures, and text models of those that also
see, which come back as the model of text alone."""

from collections.abc import Callable

from quantize.gguf.to_checkpoint.gemma_layers import gemma3n, gemma4
from quantize.gguf.to_checkpoint.metadata import Metadata, exact
from quantize.gguf.to_checkpoint.recurrent import RECURRENT, Config, multipliers, named, number, partial, used


def _qwen2vl(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    return named("Qwen2ForCausalLM", "qwen2", config, hidden_act="silu", use_sliding_window=False)


def _qwen3vl(m: Metadata, config: Config) -> Config:
    bias = m.has("blk.0.attn_q.bias")
    more = {"hidden_act": "silu", "attention_bias": bias, "use_sliding_window": False}
    return named("Qwen3ForCausalLM", "qwen3", config, **more)


def _mistral3(m: Metadata, config: Config) -> Config:
    if m.find("attention.temperature_scale") is None:
        return named("MistralForCausalLM", "mistral", config, hidden_act="silu", sliding_window=None)
    rope = {**config.pop("rope_scaling", {"rope_type": "default"}), "rope_theta": config.pop("rope_theta")}
    rope["llama_4_scaling_beta"] = exact(m.number("attention.temperature_scale"))
    if m.find("rope.scaling.yarn_log_multiplier") is not None:
        mscale = exact(m.number("rope.scaling.yarn_log_multiplier"))
        rope |= {"mscale": mscale, "mscale_all_dim": mscale}
        rope.pop("attention_factor", None)
    return named("Ministral3ForCausalLM", "ministral3", config, hidden_act="silu", rope_parameters=rope)


def _granitemoe(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    more = {"hidden_act": "silu", "num_local_experts": m.experts(), **used(m), **multipliers(m)}
    if m.find("expert_shared_feed_forward_length") is None:
        return named("GraniteMoeForCausalLM", "granitemoe", config, **more)
    shared = m.integer("expert_shared_feed_forward_length")
    name = "GraniteMoeSharedForCausalLM"
    return named(name, "granitemoeshared", config, **more, shared_intermediate_size=shared)


def _nemotron(m: Metadata, config: Config) -> Config:
    epsilon = config.pop("rms_norm_eps")
    more = {
        "hidden_act": "relu2",
        "norm_eps": epsilon,
        "partial_rotary_factor": partial(m, config),
        "attention_bias": m.has("blk.0.attn_output.bias"),
        "mlp_bias": m.has("blk.0.ffn_up.bias"),
    }
    return named("NemotronForCausalLM", "nemotron", config, **more)


def _glm4moe(m: Metadata, config: Config) -> Config:
    more = {
        "hidden_act": "silu",
        "partial_rotary_factor": partial(m, config),
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "use_qk_norm": m.has("blk.0.attn_q_norm.weight"),
        "n_routed_experts": m.experts(),
        **used(m),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "n_shared_experts": m.integer("expert_shared_count"),
        "first_k_dense_replace": m.find("leading_dense_block_count") or 0,
        "routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "norm_topk_prob": bool(m.find("expert_weights_norm")),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
    }
    return named("Glm4MoeForCausalLM", "glm4_moe", config, **more)


def _llama4(m: Metadata, config: Config) -> Config:
    wide = config.pop("intermediate_size")
    more = {
        "hidden_act": "silu",
        "intermediate_size_mlp": wide,
        "intermediate_size": m.integer("expert_feed_forward_length"),
        "interleave_moe_layer_step": m.integer("interleave_moe_layer_step"),
        "num_local_experts": (count := m.experts()),
        **used(m),
        "use_qk_norm": count != 128,
    }
    return named("Llama4ForCausalLM", "llama4_text", config, **more)


def _gpt_oss(m: Metadata, config: Config) -> Config:
    config["intermediate_size"] = m.integer("expert_feed_forward_length")
    more = {
        "hidden_act": "silu",
        "attention_bias": True,
        "num_local_experts": m.experts(),
        **used(m),
        "sliding_window": m.integer("attention.sliding_window"),
    }
    return named("GptOssForCausalLM", "gpt_oss", config, **more)


VARIANTS: dict[str, Callable[[Metadata, Config], Config]] = {
    "qwen2vl": _qwen2vl,
    "qwen3vl": _qwen3vl,
    "mistral3": _mistral3,
    "granitemoe": _granitemoe,
    "nemotron": _nemotron,
    "glm4moe": _glm4moe,
    "gpt-oss": _gpt_oss,
    "llama4": _llama4,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    **RECURRENT,
}
