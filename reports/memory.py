"""How much memory serving takes: the weights, the KV cache at a context, and what the program needs
besides."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import BadInput
from quantize.files import read_json
from quantize.metrics import GPU_MEMORY_BYTES, PEAK_MEMORY_BYTES, TG_TOKENS_PER_S
from reports.rows import Group, Row

# of an element: half precision, the default of llama.cpp, vLLM and a bf16 model in transformers
CACHE_BYTES = 2
ASSUMED_OVERHEAD = 512 << 20
ASSUMED_SHARE = 0.10


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


def find_shapes(group: Group, roots: Sequence[Path] = (Path(),)) -> dict[str, KvShape | None]:
    """Row label -> from the config.json of the artifact, else of its source, where either still lies where it
    was measured."""
    names = [r.subject.model for r in group.all_rows] + [
        r.subject.name for r in group.all_rows if r.subject.status == "ok"
    ]
    common = _first_shape(dict.fromkeys([group.model, *names]), roots)
    return {row.label: _first_shape([row.subject.name], roots) or common for row in group.rows}


def _first_shape(names: Iterable[str], roots: Sequence[Path]) -> KvShape | None:
    for name in filter(None, names):
        for root in roots:
            path = root / name / "config.json"
            try:
                shape = kv_shape(read_json(path), str(path)) if path.is_file() else None
            except (BadInput, OSError, ValueError):  # a name that no file can have among them
                continue
            if shape:
                return shape
    return None


def read_shape(model: Path) -> KvShape:
    """Errors: BadInput where ``model`` holds no config.json that says what the cache takes."""
    path = model / "config.json" if model.is_dir() else model
    try:
        shape = kv_shape(read_json(path), str(path))
    except BadInput as error:
        raise BadInput(f"--model {model}: {error}; give the folder of the source checkpoint") from None
    if shape is None:
        raise BadInput(f"{path}: has no num_hidden_layers and heads; give --kv-bytes-per-token instead")
    return shape


def overhead(row: Row, shape: KvShape | None) -> tuple[int, str]:
    """(bytes, how it was found): measured peak less weights and cache, or an assumption where no peak was
    measured."""
    weights = row.subject.size_bytes or 0
    for metric, title in ((GPU_MEMORY_BYTES, "GPU memory"), (PEAK_MEMORY_BYTES, "peak memory")):
        result = row.cells.get(metric)
        if result is not None and result.value:
            speed = row.cells.get(TG_TOKENS_PER_S)
            digits = "".join(c for c in (speed.protocol.split("@")[0] if speed else "") if c.isdigit())
            tokens = int(digits or 0)
            cache = shape.bytes_at(tokens) if shape else 0
            rest = max(0, round(result.value - weights - cache))
            return rest, f"measured {title} minus weights and the cache of {tokens} tokens"
    return round(
        ASSUMED_OVERHEAD + ASSUMED_SHARE * weights
    ), "assumed: 512 MiB and 10 % of the weights; `quantwright bench` measures it"
