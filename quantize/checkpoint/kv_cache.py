"""What the KV cache of a model takes, from its config."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

# of an element: half precision, the default of llama.cpp, vLLM and a bf16 model in transformers
CACHE_BYTES = 2


@dataclass(frozen=True)
class KvShape:
    """``layers``: (bytes a token, most tokens kept or None), summed over layers of one kind; ``context``: the
    model's limit."""

    layers: tuple[tuple[int, int | None], ...]
    context: int | None = None
    source: str = ""

    def bytes_at(self, tokens: int) -> int:
        """Of one sequence of ``tokens``; a layer with a sliding window keeps no more than the window."""
        return sum(
            per_token * (tokens if cap is None else min(tokens, cap)) for per_token, cap in self.layers
        )

    @property
    def arithmetic(self) -> str:
        parts = [
            f"{per_token:,} B a token" + (f" for at most {cap:,} tokens" if cap else "")
            for per_token, cap in self.layers
        ]
        return " + ".join(parts)


def kv_shape(config: dict[str, Any], source: str = "") -> KvShape | None:
    """From a model's config.json. None where it does not say how many layers and heads there are.

    A layer stores 2 (keys and values) x KV heads x head dimension elements a token; with latent attention
    (``kv_lora_rank``) the compressed vector and the rotary part.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) and inner else config

    def whole(key: str) -> int:
        """0 where it is not said, or by no number that a model can have."""
        value = text.get(key)
        return value if type(value) is int and 0 < value < 2**31 else 0

    layers, heads = whole("num_hidden_layers"), whole("num_key_value_heads") or whole("num_attention_heads")
    if not layers or not heads:
        return None
    if whole("kv_lora_rank"):
        elements = whole("kv_lora_rank") + whole("qk_rope_head_dim")
    else:
        size = whole("head_dim") or whole("hidden_size") // (whole("num_attention_heads") or heads)
        if not size:
            return None
        elements = 2 * heads * size
    kinds, window = text.get("layer_types"), whole("sliding_window")
    if isinstance(kinds, list) and kinds:
        sliding = [
            kind == "sliding_attention" and bool(window)
            for kind in kinds
            if isinstance(kind, str) and "attention" in kind
        ]
        caps = Counter(window if slides else None for slides in sliding)
    else:
        caps = Counter({None: layers})
    per_layer = elements * CACHE_BYTES
    found = tuple(
        (count * per_layer, cap) for cap, count in sorted(caps.items(), key=lambda pair: pair[0] or 0)
    )
    return KvShape(found, whole("max_position_embeddings") or None, source)
