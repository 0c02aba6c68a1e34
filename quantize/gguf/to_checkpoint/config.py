"""A GGUF's metadata as the config.json of the Hugging Face checkpoint that it represents: Llama, Mixtral,
Qwen and Gemma."""

from collections.abc import Callable
from typing import Any

import numpy as np

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.rope import growth, llama3_divisors, read_rope
from quantize.gguf.to_checkpoint.decoders import DECODERS
from quantize.gguf.to_checkpoint.metadata import MOST_HEAD, Metadata, exact
from quantize.gguf.to_checkpoint.mixtures import MIXTURES
from quantize.gguf.to_checkpoint.recurrent import WITHOUT_ATTENTION
from quantize.gguf.to_checkpoint.variants import VARIANTS
from quantize.gguf.tokenizer.chat_templates import token_of
from quantize.terminal import printable

# (factor is read off) low, high, original context: of the models published with this scaling
LLAMA3_KNOWN = [
    (1.0, 4.0, 8192),
    (1.0, 1.0, 8192),
]

#: what a config calls the number of layers that predict further tokens, where it is another name
AHEAD = dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), "mtp_num_hidden_layers")


def to_config(file: GgufFile) -> dict[str, Any]:
    """config.json of the checkpoint that ``file`` was made from, in the spelling that transformers 4 and 5
    both read.

    Errors: Unsupported for an architecture with no way back (the message lists those with one); BadInput
    where metadata are missing or contradict the tensors.
    """
    m = Metadata(file)
    if m.architecture not in ARCHITECTURES:
        known, given = ", ".join(ARCHITECTURES), printable(m.architecture, 60)
        raise Unsupported(
            f"{file.path}: a GGUF of architecture {given!r} cannot "
            f"be read back into a checkpoint; known: {known}"
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadInput(f"{file.path}: no token_embd.weight of two axes; fetch the file again")
    hidden = m.integer("embedding_length")
    if embedding.shape[1] != hidden:
        raise BadInput(
            f"{file.path}: token_embd.weight has rows of {embedding.shape[1]}, embedding_length is {hidden}"
        )
    epsilon = m.number("attention.layer_norm_rms_epsilon", m.find("attention.layer_norm_epsilon"))
    config: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": m.layers,
        "rms_norm_eps": exact(epsilon),
        "tie_word_embeddings": not m.has("output.weight"),
    }
    if m.architecture not in WITHOUT_ATTENTION:
        config |= _attention(m, hidden)
        if scaling := _scaling(m, config):
            config["rope_scaling"] = scaling
    for role in ("bos", "eos"):
        if (number := token_of(file.kvs, role)) is not None:
            config[f"{role}_token_id"] = number
    found = ARCHITECTURES[m.architecture](m, config)
    return {**found, AHEAD.get(m.architecture, "num_nextn_predict_layers"): m.ahead} if m.ahead else found


def _attention(m: Metadata, hidden: int) -> dict[str, Any]:
    heads = m.largest("attention.head_count", None, most=hidden)
    head = m.integer("rope.dimension_count", hidden // heads, most=MOST_HEAD)
    return {
        "intermediate_size": m.largest("feed_forward_length", 1),
        "num_attention_heads": heads,
        "num_key_value_heads": m.largest("attention.head_count_kv", heads, most=heads),
        "max_position_embeddings": m.integer("context_length"),
        "rope_theta": float(m.number("rope.freq_base", 10000.0)),
        "head_dim": m.integer("attention.key_length", head, most=MOST_HEAD),
    }


def _scaling(m: Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    kind = m.find("rope.scaling.type")
    if kind in ("linear", "yarn"):
        scaling: dict[str, Any] = {"rope_type": kind, "factor": exact(m.number("rope.scaling.factor"))}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = m.integer("rope.scaling.original_context_length")
            for ours, theirs in (
                ("yarn_attn_factor", "attention_factor"),
                ("yarn_beta_fast", "beta_fast"),
                ("yarn_beta_slow", "beta_slow"),
            ):
                if m.find(f"rope.scaling.{ours}") is not None:
                    scaling[theirs] = exact(m.number(f"rope.scaling.{ours}"))
            # what llama.cpp reads, in addition to YaRN's usual factor
            if m.find("rope.scaling.attn_factor") is not None:
                scaling["attention_factor"] = exact(
                    m.number("rope.scaling.attn_factor") * growth(scaling["factor"])
                )
        return scaling
    if kind not in (None, "none"):
        raise Unsupported(
            f"{m.file.path}: rope scaling of type {printable(kind, 60)!r} "
            "cannot be read back; linear, yarn and llama3 can"
        )
    own = m.architecture == "gemma4"  # whose divisors are no scaling
    return _llama3(m, config) if m.has("rope_freqs.weight") and not own else None


def _llama3(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """The parameters that produce the file's divisors: the factor is the largest of them, the others are
    found by trial.

    Errors: Unsupported where none of the published ones fit.
    """
    stored = m.file.dequantize("rope_freqs.weight")
    factor = exact(float(stored.max()))
    for low, high, context in LLAMA3_KNOWN:
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }  # fmt: skip
        h = Hyperparameters({**config, "rope_scaling": scaling}, {})
        made = llama3_divisors(read_rope(h), h.head_dim)
        if made.shape == stored.shape and np.allclose(made, stored, rtol=1e-5):
            return scaling
    if np.all(stored == 1):
        return {"rope_type": "default"}
    raise Unsupported(
        f"{m.file.path}: rope_freqs.weight is not the llama3 "
        "scaling of any published model; it cannot be read back"
    )


def _biases(m: Metadata) -> dict[str, bool]:
    return {"attention_bias": m.has("blk.0.attn_output.bias"), "mlp_bias": m.has("blk.0.ffn_up.bias")}


def _llama(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    if m.find("expert_count"):
        return {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **config, "hidden_act": "silu",
            "sliding_window": None, "num_local_experts": (count := m.experts()),
            "num_experts_per_tok": m.integer("expert_used_count", most=count),
        }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        "hidden_act": "silu",
        **_biases(m),
    }


def _qwen2(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    config.pop("head_dim")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **config,
        "hidden_act": "silu",
        "use_sliding_window": False,
    }


def _qwen3(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    bias = m.has("blk.0.attn_q.bias")
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **config, "hidden_act": "silu",
        "attention_bias": bias,
        "use_sliding_window": False,
    }  # fmt: skip


def _experts(m: Metadata) -> dict[str, Any]:
    return {
        "hidden_act": "silu", "num_experts": (count := m.experts()),
        "num_experts_per_tok": m.integer("expert_used_count", most=count),
        "moe_intermediate_size": m.integer("expert_feed_forward_length"), "use_sliding_window": False,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen2moe(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    config.pop("head_dim")
    shared = m.integer("expert_shared_feed_forward_length")
    return {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", **config, **_experts(m),
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": shared,
    }  # fmt: skip


def _qwen3moe(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **config,
        **_experts(m),
        "norm_topk_prob": True,
    }


def _gemma(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **config,
        **activation,
        "attention_bias": False,
    }


def _query_scale(config: dict[str, Any], layers_27b: int) -> int:
    """What llama.cpp scales the queries by, to the power of -0.5: it knows the 27 B model by its layers."""
    if config["num_hidden_layers"] == layers_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _layer_types(m: Metadata, layers: int, period: int) -> list[str]:
    pattern = m.find("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        sliding = [bool(layer) for layer in pattern[:layers]]
    else:
        period = int(pattern) if isinstance(pattern, int) and pattern > 0 else period
        sliding = [bool((index + 1) % period) for index in range(layers)]
    return ["sliding_attention" if layer else "full_attention" for layer in sliding]


def _gemma2(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    caps = {key: exact(m.number(key)) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **config,
        "hidden_activation": "gelu_pytorch_tanh",
        **caps, "query_pre_attn_scalar": _query_scale(config, 46), "attention_bias": False,
        "sliding_window": m.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(m, config["num_hidden_layers"], 2),
    }  # fmt: skip


def _gemma3(m: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    window = m.find("attention.sliding_window") is not None
    cap = m.find("final_logit_softcapping") is not None
    config["rope_theta"] = float(m.number("rope.freq_base", 1_000_000.0))
    return {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **config,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scale(config, 62), "attention_bias": False,
        "sliding_window": m.integer("attention.sliding_window", 4096),
        "rope_local_base_freq": float(m.number("rope.freq_base_swa", 10_000.0)),
        "layer_types": _layer_types(m, layers, 6) if window else ["full_attention"] * layers,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": m.number("final_logit_softcapping") if cap else None,
    }  # fmt: skip


ARCHITECTURES: dict[str, Callable[[Metadata, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    **VARIANTS,
    **DECODERS,
    **MIXTURES,
}
