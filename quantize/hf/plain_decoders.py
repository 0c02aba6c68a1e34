"""Parameters of decoders that transformers stores unchanged, derived from config.json only.

Building the architecture, even without its weights, takes seconds of imports; a plan looks at many
checkpoints and recipes. A model that is not listed here, or has a setting that is not, is built
(``quantize.hf.names``). A test builds every one and compares.
"""

from dataclasses import dataclass
from typing import Any

from quantize.dtypes import DENSE

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Decoder:
    """Where a model type differs from Llama. ``biases``: of q, k and v, where the config does not say.
    ``norms``: of a layer."""

    biases: bool = False
    tied: bool = False
    head_norms: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
DECODERS: dict[str, Decoder] = {
    "llama": Decoder(),
    "mistral": Decoder(),
    "qwen2": Decoder(biases=True),
    "qwen3": Decoder(head_norms=True),
    "gemma": Decoder(tied=True),
    "gemma2": Decoder(tied=True, norms=_GEMMA_NORMS),
    "gemma3_text": Decoder(tied=True, head_norms=True, norms=_GEMMA_NORMS),
}
#: settings that add or take away parameters, and are left to the built architecture
ELSEWHERE = ("attention_bias", "mlp_bias", "auto_map", "quantization_config", "text_config")
_NOTHING = type(None)
#: The other fields, of types that transformers' config classes take for every model type above. What is not
#: here they may refuse, so that it is left to them too.
SETTLED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"), (int,)
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "max_position_embeddings", "max_window_layers", "query_pre_attn_scalar"),
        (int,),
    ),
    **dict.fromkeys(
        ("head_dim", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern"), (int, _NOTHING)
    ),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "pretraining_tp"), (int, _NOTHING)),
    "eos_token_id": (int, list, _NOTHING),
    **dict.fromkeys(("rms_norm_eps", "initializer_range"), (float,)),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), (float, _NOTHING)),
    "attention_dropout": (int, float),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), (int, float)),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), (dict, _NOTHING)),
    **dict.fromkeys(
        ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), (bool,)
    ),
    "use_bidirectional_attention": (bool, _NOTHING),
    **dict.fromkeys(("hidden_act", "hidden_activation", "model_type"), (str,)),
    **dict.fromkeys(
        ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "cache_implementation"),
        (str, _NOTHING),
    ),
    "layer_types": (list, _NOTHING),
    "architectures": (list,),
    **dict.fromkeys(("auto_map", "quantization_config", "text_config"), (dict, _NOTHING)),
}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu")
_DTYPES = (None, *DENSE)
#: what each kind of rotary scaling must say; others are left to transformers
ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ATTENTION = ("full_attention", "sliding_attention")


def _settled(config: dict[str, Any]) -> bool:
    """Whether every field is one that transformers is known to take."""
    if not all(type(value) in SETTLED.get(name, ()) for name, value in config.items()):
        return False
    layers, heads, groups = (
        config.get(n) or 0 for n in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    kinds = config.get("layer_types")
    ropes = [config[name] for name in ("rope_scaling", "rope_parameters") if config.get(name)]
    flat = [rope[kind] for rope in ropes for kind in _ATTENTION if kind in rope] + [
        rope for rope in ropes if not set(_ATTENTION) & set(rope)
    ]
    ends = config.get("eos_token_id")
    return (
        heads > 0
        and groups > 0
        and config.get("head_dim") != 0
        and not config.get("hidden_size", 0) % heads
        and (kinds is None or (len(kinds) == layers and set(kinds) <= set(_ATTENTION)))
        and -1 <= (config.get("pad_token_id") or 0) < config.get("vocab_size", 0)
        and 0 <= config.get("initializer_range", 0.0) <= 1
        and all(config.get(name, "silu") in ACTIVATIONS for name in ("hidden_act", "hidden_activation"))
        and all(config.get(name) in _DTYPES for name in ("dtype", "torch_dtype"))
        and not (isinstance(ends, list) and any(type(number) is not int for number in ends))
        and all(_known_rope(rope) for rope in flat)
    )


def _known_rope(rope: Any) -> bool:
    if not isinstance(rope, dict):
        return False
    needed = ROPE_KINDS.get(str(rope.get("rope_type", rope.get("type", "default"))))
    numbers = {"rope_theta", *(needed or ())}
    return (
        needed is not None
        and set(needed) <= set(rope) <= {"rope_type", "type", *numbers}
        and all(type(rope[name]) in (int, float) for name in numbers & set(rope))
    )


def parameters(config: dict[str, Any]) -> tuple[Shapes, dict[str, tuple[int, int]], bool] | None:
    """(parameter -> shape, linear layer -> (out, in), whether the head is tied), or None where the model must
    be built."""
    kind = DECODERS.get(str(config.get("model_type")))
    architectures = config.get("architectures") or []
    if (
        kind is None
        or any(config.get(key) for key in ELSEWHERE)
        or [str(a)[-11:] for a in architectures] != ["ForCausalLM"]
    ):
        return None
    if not _settled(config):
        return None
    try:
        hidden, inner, vocabulary, layers, heads = (
            int(config[key])
            for key in (
                "hidden_size",
                "intermediate_size",
                "vocab_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
        )
        # Without the key each model type has its own default.
        groups = int(config["num_key_value_heads"])
        width = int(
            config.get("head_dim")
            or (hidden // heads if not kind.head_norms and not kind.tied else config["head_dim"])
        )
    except (KeyError, TypeError, ValueError):
        return None
    attention = {
        "q_proj": (heads * width, hidden),
        "k_proj": (groups * width, hidden),
        "v_proj": (groups * width, hidden),
    }
    attention["o_proj"] = (hidden, heads * width)
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    linear: dict[str, tuple[int, int]] = {}
    for index in range(layers):
        layer = f"model.layers.{index}"
        linear |= {f"{layer}.self_attn.{name}": shape for name, shape in attention.items()}
        linear |= {f"{layer}.mlp.{name}": shape for name, shape in mlp.items()}
        shapes |= {f"{layer}.{name}.weight": (hidden,) for name in kind.norms}
        if kind.biases:
            shapes |= {
                f"{layer}.self_attn.{name}.bias": attention[name][:1]
                for name in ("q_proj", "k_proj", "v_proj")
            }
        if kind.head_norms:
            shapes |= {f"{layer}.self_attn.{name}.weight": (width,) for name in ("q_norm", "k_norm")}
    linear["lm_head"] = (vocabulary, hidden)
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    return shapes, linear, bool(config.get("tie_word_embeddings", kind.tied))
