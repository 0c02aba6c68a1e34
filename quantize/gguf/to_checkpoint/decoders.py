"""config.json of what a GGUF holds, for dense decoders: OLMo, ERNIE, EXAONE, Seed-OSS, Hunyuan, Arcee,
MiniCPM 3, StarCoder; and for DeepSeek's latent attention."""

import math
from collections.abc import Callable
from typing import Any

from quantize.errors import BadInput
from quantize.gguf.to_checkpoint.metadata import Metadata, exact

Config = dict[str, Any]
LAYERS_32B = 64  # of EXAONE 4, which alone slides


def named(architecture: str, kind: str, config: Config, **more: Any) -> Config:
    return {"architectures": [architecture], "model_type": kind, **config, **more}


def number(m: Metadata, key: str, default: float | None = None) -> float:
    return exact(m.number(key, default))


def count(m: Metadata, key: str) -> int:
    """0 where the file has none."""
    return m.integer(key) if m.find(key) else 0


def layer_types(m: Metadata, layers: int, period: int = 4) -> list[str]:
    """By the file's pattern, or every ``period``-th layer global."""
    pattern = m.find("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        pattern = [(index + 1) % period for index in range(layers)]
    if len(pattern) < layers:
        raise BadInput(
            f"{m.file.path}: a pattern of {len(pattern)} layers for {layers}; fetch the file again"
        )
    return ["sliding_attention" if each else "full_attention" for each in pattern[:layers]]


def rope_by_layer(m: Metadata, config: Config) -> Config:
    """Parameters of both kinds of layer: sliding ones are not stretched."""
    theta = config.pop("rope_theta")
    scaling = config.pop("rope_scaling", {"rope_type": "default"})
    local = float(m.number("rope.freq_base_swa", theta))
    return {
        "full_attention": {**scaling, "rope_theta": theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _olmo(m: Metadata, config: Config) -> Config:
    for key in ("rms_norm_eps", "head_dim"):
        config.pop(key)
    limit = m.find("attention.clamp_kqv")
    clip = None if limit is None else number(m, "attention.clamp_kqv")
    return named("OlmoForCausalLM", "olmo", config, hidden_act="silu", attention_bias=False, clip_qkv=clip)


def _olmo2(m: Metadata, config: Config) -> Config:
    config.pop("head_dim")
    more: Config = {"hidden_act": "silu", "attention_bias": False}
    if m.find("attention.sliding_window") is None:
        return named("Olmo2ForCausalLM", "olmo2", config, **more)
    more |= {
        "sliding_window": m.integer("attention.sliding_window"),
        "layer_types": layer_types(m, config["num_hidden_layers"]),
        "rope_parameters": rope_by_layer(m, config),
    }
    return named("Olmo3ForCausalLM", "olmo3", config, **more)


def _ernie(m: Metadata, config: Config) -> Config:
    return named("Ernie4_5ForCausalLM", "ernie4_5", config, hidden_act="silu", use_bias=False)


def _exaone4(m: Metadata, config: Config) -> Config:
    layers = config["num_hidden_layers"]
    more: Config = {"hidden_act": "silu", "sliding_window": None, "layer_types": ["full_attention"] * layers}
    if layers == LAYERS_32B:
        more["sliding_window"] = m.integer("attention.sliding_window", 4096)
        more["layer_types"] = layer_types(m, layers)
    return named("Exaone4ForCausalLM", "exaone4", config, **more)


def _seed_oss(m: Metadata, config: Config) -> Config:
    more = {
        "hidden_act": "silu",
        "attention_bias": m.has("blk.0.attn_q.bias"),
        "attention_out_bias": False,
        "mlp_bias": False,
    }
    return named("SeedOssForCausalLM", "seed_oss", config, **more)


def _hunyuan(m: Metadata, config: Config) -> Config:
    more = {"hidden_act": "silu", "attention_bias": False}
    return named("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", config, **more)


def _arcee(m: Metadata, config: Config) -> Config:
    more = {"hidden_act": "relu2", "attention_bias": False, "mlp_bias": False}
    return named("ArceeForCausalLM", "arcee", config, **more)


def _starcoder(m: Metadata, config: Config) -> Config:
    names = {
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
    }  # fmt: skip
    kept = {names.get(key, key): value for key, value in config.items()}
    for key in ("rope_theta", "head_dim", "num_key_value_heads"):
        kept.pop(key)
    single = m.integer("attention.head_count_kv") == 1
    more = {"activation_function": "gelu_pytorch_tanh", "multi_query": single}
    return named("GPTBigCodeForCausalLM", "gpt_bigcode", kept, **more)


def _minicpm3(m: Metadata, config: Config) -> Config:
    rotated = m.integer("rope.dimension_count")
    more = {
        "hidden_act": "silu",
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "q_lora_rank": m.integer("attention.q_lora_rank"),
        "kv_lora_rank": m.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": config.pop("head_dim") - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": m.integer("attention.value_length"),
    }
    return named("MiniCPM3ForCausalLM", "minicpm3", config, **more)


def latent(m: Metadata, config: Config) -> Config:
    """Of DeepSeek's attention: ranks, widths and the rotation, whose factors llama.cpp has in other terms."""
    rotated = m.integer("rope.dimension_count")
    queries = m.find("attention.q_lora_rank")
    found: Config = {
        "hidden_act": "silu",
        "attention_bias": False,
        "q_lora_rank": m.integer("attention.q_lora_rank") if queries else None,
        "kv_lora_rank": m.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": m.integer("attention.key_length_mla") - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": m.integer("attention.value_length_mla"),
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": rotated,
    }
    rope = {**config.pop("rope_scaling", {"rope_type": "default"}), "rope_theta": config.pop("rope_theta")}
    if rope["rope_type"] == "yarn":
        attention = number(m, "rope.scaling.attn_factor", 1.0)
        rope.pop("attention_factor", None)
        # the inverse of families.deepseek2.yarn_kvs
        if m.find("rope.scaling.yarn_log_multiplier") is not None:
            stretch = math.log(rope["factor"])
            scores = attention * (1 + number(m, "rope.scaling.yarn_log_multiplier") * stretch)
            rope["mscale_all_dim"] = exact((scores - 1) / (0.1 * stretch))
            rope["mscale"] = exact((attention * scores - 1) / (0.1 * stretch))
    return found | {"rope_parameters": rope}


def mixture(m: Metadata) -> Config:
    """Of DeepSeek's experts."""
    return {
        "n_routed_experts": m.experts(),
        "num_experts_per_tok": m.integer("expert_used_count"),
        "n_shared_experts": m.integer("expert_shared_count"),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"),
        "first_k_dense_replace": count(m, "leading_dense_block_count"),
        "routed_scaling_factor": number(m, "expert_weights_scale", 1.0),
        "norm_topk_prob": bool(m.find("expert_weights_norm")),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
    }


def _deepseek2(m: Metadata, config: Config) -> Config:
    config |= latent(m, config)
    if not m.find("expert_count"):
        return named("YoutuForCausalLM", "youtu", config, rope_interleave=True)
    if m.find("expert_gating_func") == 2:
        more = {**mixture(m), "rope_interleave": True}
        return named("DeepseekV3ForCausalLM", "deepseek_v3", config, **more)
    groups = m.integer("expert_group_count", 1)
    method = "group_limited_greedy" if groups > 1 else "greedy"
    return named("DeepseekV2ForCausalLM", "deepseek_v2", config, **mixture(m), topk_method=method)


def _deepseek32(m: Metadata, config: Config) -> Config:
    config |= latent(m, config)
    more = {
        **mixture(m),
        "index_n_heads": m.integer("attention.indexer.head_count"),
        "index_head_dim": m.integer("attention.indexer.key_length"),
        "index_topk": m.integer("attention.indexer.top_k"),
    }
    more["mlp_layer_types"] = [
        "dense" if layer < more["first_k_dense_replace"] else "sparse"
        for layer in range(config["num_hidden_layers"])
    ]
    return named("DeepseekV32ForCausalLM", "deepseek_v32", config, **more)


def _apertus(m: Metadata, config: Config) -> Config:
    more = {"hidden_act": "xielu", "attention_bias": m.has("blk.0.attn_q.bias")}
    return named("ApertusForCausalLM", "apertus", config, **more)


DECODERS: dict[str, Callable[[Metadata, Config], Config]] = {
    "olmo": _olmo,
    "olmo2": _olmo2,
    "ernie4_5": _ernie,
    "exaone4": _exaone4,
    "seed_oss": _seed_oss,
    "hunyuan-dense": _hunyuan,
    "arcee": _arcee,
    "apertus": _apertus,
    "starcoder": _starcoder,
    "minicpm3": _minicpm3,
    "deepseek2": _deepseek2,
    "deepseek32": _deepseek32,
}
