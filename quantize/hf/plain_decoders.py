"""Parameters of decoders that transformers stores as they are, told from config.json alone.

Building the architecture, even without its weights, takes seconds of imports; a plan looks at many checkpoints and recipes.
What is not listed here, or has a setting that is not, is built (``quantize.hf.names``). A test builds every one and compares.
"""

from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Decoder:
    """Where a model type departs from Llama. ``biases``: of q, k and v, where the config does not say. ``norms``: of a layer."""

    biases: bool = False
    tied: bool = False
    head_norms: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


_GEMMA_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
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


def parameters(config: dict[str, Any]) -> tuple[Shapes, dict[str, tuple[int, int]], bool] | None:
    """(parameter -> shape, linear layer -> (out, in), whether the head is tied), or None where the model must be built."""
    kind = DECODERS.get(str(config.get("model_type")))
    architectures = config.get("architectures") or []
    if kind is None or any(config.get(key) for key in ELSEWHERE) or [str(a)[-11:] for a in architectures] != ["ForCausalLM"]:
        return None
    try:
        hidden, inner, vocabulary, layers, heads = (
            int(config[key])
            for key in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
        )
        # Without the key each model type has a default of its own.
        groups = int(config["num_key_value_heads"])
        width = int(config.get("head_dim") or (hidden // heads if not kind.head_norms and not kind.tied else config["head_dim"]))
    except (KeyError, TypeError, ValueError):
        return None
    attention = {"q_proj": (heads * width, hidden), "k_proj": (groups * width, hidden), "v_proj": (groups * width, hidden)}
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
            shapes |= {f"{layer}.self_attn.{name}.bias": attention[name][:1] for name in ("q_proj", "k_proj", "v_proj")}
        if kind.head_norms:
            shapes |= {f"{layer}.self_attn.{name}.weight": (width,) for name in ("q_norm", "k_norm")}
    linear["lm_head"] = (vocabulary, hidden)
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    return shapes, linear, bool(config.get("tie_word_embeddings", kind.tied))
