"""The rotary embedding: a config's parameters in transformers' spellings and order, and what makes llama.cpp
compute it.

llama.cpp has keys for linear scaling and for YaRN with its usual betas. Frequencies of any other kind (Llama
3's, YaRN's with other betas) are a tensor of divisors, LongRoPE's two of them, which some architectures load
and others do not. A factor on cos and sin is ``rope.scaling.attn_factor``; YaRN's usual one is applied in
addition.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from quantize.artifact.artifact import Note
from quantize.errors import BadInput, Unsupported
from quantize.gguf.families.config import Hyperparameters

KVs = dict[str, tuple[Any, GGUFValueType]]
U32, F32, STRING = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
LOCAL, GLOBAL = "sliding_attention", "full_attention"
#: model types whose sliding layers have parameters of their own
BY_LAYER = frozenset(("olmo3", "laguna", "mellum", "mimo_v2_flash"))
#: tensors that an architecture of llama.cpp may load: divisors of the frequencies, and LongRoPE's for long
#: and short contexts
FREQUENCIES, FACTORS = "rope_freqs", "rope_factors"


@dataclass(frozen=True)
class Rope:
    """``own``: the parameters of this kind, as the config has them."""

    kind: str
    theta: float
    partial: float
    context: int
    original: int  # context that it was trained with, before it was stretched
    own: Mapping[str, Any]
    source: str

    def number(self, name: str) -> float:
        """Errors: BadInput where the config has none."""
        value = self.own.get(name)
        if value is None:
            raise BadInput(
                f"{self.source}: rope scaling of type {self.kind!r} has no {name}; fetch config.json again"
            )
        return float(value)

    @property
    def factor(self) -> float:
        """Of the stretch. Where the config leaves it out, the ratio of the contexts."""
        given = self.own.get("factor")
        return (
            self.context / self.original
            if given is None and self.kind in ("yarn", "longrope")
            else self.number("factor")
        )

    @property
    def attention(self) -> float:
        """Factor on cos and sin. Source: transformers' ``_compute_yarn_parameters``,
        ``_compute_longrope_parameters``."""
        given = self.own.get("attention_factor")
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if given is not None:
            return float(given)
        if self.kind == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original)) if self.factor > 1 else 1.0
        mscale, all_dim = self.own.get("mscale"), self.own.get("mscale_all_dim")
        return (
            growth(self.factor, mscale) / growth(self.factor, all_dim)
            if mscale and all_dim
            else growth(self.factor)
        )

    @property
    def usual_ramp(self) -> bool:
        """Whether YaRN's ramp is the one that llama.cpp has built in."""
        betas = self.own.get("beta_fast") or 32, self.own.get("beta_slow") or 1
        return betas == (32, 1) and bool(self.own.get("truncate", True))


def growth(factor: float, mscale: float | None = 1.0) -> float:
    """YaRN's usual factor on cos and sin."""
    return 0.1 * float(mscale or 0) * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_rope(h: Hyperparameters, layers: str = GLOBAL) -> Rope:
    """Parameters of the rotary embedding, for models that slide of these ``layers``.

    Source: transformers' ``RotaryEmbeddingConfigMixin`` and the config classes that override it (Gemma 3,
    Phi-3, GPT-NeoX): rope_scaling takes precedence over rope_parameters, and values inside either over values
    beside it.

    Errors: BadInput, Unsupported where the parameters are not an object, or are given per layer type for a
    model with one kind of layer.
    """
    scaling, parameters = (_object(h, name) for name in ("rope_scaling", "rope_parameters"))
    theta, local = h.find("rotary_emb_base", "rope_theta"), h.config.get("rope_local_base_freq")
    if local is not None:  # Gemma 3
        own = {**(parameters.get(layers) or {}), **(scaling if layers == GLOBAL else {})}
        theta = theta if layers == GLOBAL else local
    else:
        own = dict(scaling or parameters)
        by_layer = h.find("model_type") in BY_LAYER
        if by_layer and (LOCAL in own or GLOBAL in own):
            own = dict(own.get(layers) or {})
        elif by_layer and layers == LOCAL:  # an older spelling, which means the global layers
            own = {}
        if LOCAL in own or GLOBAL in own:
            raise Unsupported(
                f"{h.source}: rope parameters by type of layer, "
                f"which {_name(h)} does not have in transformers"
            )
    kind = str(own.get("rope_type") or own.get("type") or "default").lower()
    if kind == "su" or (kind == "yarn" and own.get("long_factor")):  # names that Phi-3 had for it
        kind = "longrope"
    context = int(h.find("max_position_embeddings", "n_positions", "model_max_length") or 2048)
    partial = (
        own.get("partial_rotary_factor")
        or h.find("rotary_pct", "rope_pct", "rope_percent", "partial_rotary_factor")
        or 1.0
    )
    original = (
        h.find("original_max_position_embeddings") or own.get("original_max_position_embeddings") or context
    )
    theta = own["rope_theta"] if own.get("rope_theta") is not None else theta
    return Rope(
        kind,
        float(10_000.0 if theta is None else theta),
        float(partial),
        context,
        int(original),
        own,
        h.source,
    )


def _object(h: Hyperparameters, name: str) -> dict[str, Any]:
    value = h.find(name) or {}
    if not isinstance(value, dict):
        raise BadInput(f"{h.source}: config.json: {name}: expected an object")
    return value


def _name(h: Hyperparameters) -> str:
    return str((h.config.get("architectures") or ["this architecture"])[0])


def rope_kvs(h: Hyperparameters) -> KVs:
    """``rope.*`` without ``{arch}.``: scaling and bases. What is a tensor is in ``rope_tensors``. Errors: as
    ``read_rope``."""
    rope = read_rope(h)
    kvs: KVs = {}
    native = rope.kind == "linear" or (rope.kind == "yarn" and rope.usual_ramp)
    attention = rope.attention
    if native:
        kvs["rope.scaling.type"] = (rope.kind, STRING)
        kvs["rope.scaling.factor"] = (rope.factor, F32)
    if rope.kind == "longrope":
        kvs["rope.scaling.type"] = ("longrope", STRING)
    if rope.kind == "longrope" or (native and rope.kind == "yarn"):
        kvs["rope.scaling.original_context_length"] = (rope.original, U32)
    if native and rope.kind == "yarn":
        attention /= growth(rope.factor)  # llama.cpp multiplies by it in any case
    if abs(attention - 1) > 1e-7:
        kvs["rope.scaling.attn_factor"] = (attention, F32)
    kvs["rope.freq_base"] = (rope.theta, F32)
    if h.config.get("rope_local_base_freq") is not None:
        kvs["rope.freq_base_swa"] = (read_rope(h, LOCAL).theta, F32)
    return kvs


def unusual_rope(h: Hyperparameters) -> KVs:
    """For architectures whose converter writes no ``rope.*`` keys: those that differ from what llama.cpp
    assumes without them."""
    return {
        key: value
        for key, value in rope_kvs(h).items()
        if key != "rope.freq_base" or float(value[0]) != 10_000.0
    }


def rope_tensors(
    h: Hyperparameters, columns: int, loads: frozenset[str], architecture: str
) -> tuple[dict[str, np.ndarray], list[Note]]:
    """What the keys cannot express, and where llama.cpp differs. ``columns``: how many of a head are rotated;
    ``loads``: which tensors the architecture takes.

    Errors: Unsupported where llama.cpp's ``architecture`` cannot rotate as this config says; BadInput where
    it is incomplete.
    """
    rope = read_rope(h)
    what = f"{h.source}: rope scaling of type {rope.kind!r}"
    if h.config.get("rope_local_base_freq") is not None:
        local = read_rope(h, LOCAL)
        if local.kind != "default":
            raise Unsupported(
                f"{h.source}: rope scaling of type {local.kind!r} "
                "in sliding layers, which llama.cpp does not scale"
            )
        if rope.kind == "yarn" and abs(rope.attention - growth(rope.factor)) > 1e-7:
            raise Unsupported(
                f"{what} with an attention_factor, which llama.cpp would apply to the sliding layers too"
            )
    if rope.kind in ("default", "linear") or (rope.kind == "yarn" and rope.usual_ramp):
        return {}, []
    if rope.kind == "dynamic":
        why = (
            "llama.cpp has no such scaling; it changes nothing "
            f"up to max_position_embeddings ({rope.context})"
        )
        return {}, [Note(tensor="*", what="dynamic rope scaling not kept", why=why)]
    if rope.kind not in ("yarn", "longrope", "llama3"):
        raise Unsupported(
            f"{what} cannot be expressed in GGUF (default, linear, dynamic, yarn, longrope, llama3 can)"
        )
    if (FACTORS if rope.kind == "longrope" else FREQUENCIES) not in loads:
        odd = " with its own beta_fast, beta_slow or truncate" if rope.kind == "yarn" else ""
        raise Unsupported(
            f"{what}{odd} cannot be expressed: llama.cpp's {architecture} loads no frequencies from a file"
        )
    if rope.kind == "longrope":
        why = (
            "llama.cpp decides by the size of the context, transformers "
            f"by the length of the text ({rope.original} tokens)"
        )
        note = Note(tensor="*", what="long or short rope factors by the size of the context", why=why)
        return {
            f"rope_factors_{length}.weight": _factors(rope, length, columns) for length in ("long", "short")
        }, [note]
    divisors = llama3_divisors(rope, columns) if rope.kind == "llama3" else yarn_divisors(rope, columns)
    return {"rope_freqs.weight": divisors}, []


def _factors(rope: Rope, length: str, columns: int) -> np.ndarray:
    values = rope.own.get(f"{length}_factor")
    if values is None:
        raise BadInput(f"{rope.source}: rope long_factor and short_factor must come together")
    if not isinstance(values, list) or len(values) != columns // 2:
        count = len(values) if isinstance(values, list) else "no"
        raise BadInput(
            f"{rope.source}: rope {length}_factor has {count} values, its heads need {columns // 2}"
        )
    return np.array(values, np.float32)


def llama3_divisors(rope: Rope, columns: int) -> np.ndarray:
    """Of each frequency, (columns / 2,) float32. Source: transformers' ``_compute_llama3_parameters``."""
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope.original)
    wavelength = 2 * math.pi / _frequencies(rope, columns)
    # Llama 4 has both alike: nothing lies between
    smooth = (context / wavelength - low) / (high - low or 1.0)
    divisor = np.where(wavelength > context / low, factor, 1 / ((1 - smooth) / factor + smooth))
    return np.where(wavelength < context / high, 1.0, divisor).astype(np.float32)


def yarn_divisors(rope: Rope, columns: int) -> np.ndarray:
    """Of each frequency, (columns / 2,) float32. Source: transformers' ``_compute_yarn_parameters``."""

    def place(turns: float) -> float:
        return columns * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = (
        place(float(rope.own.get(key) or usual)) for key, usual in (("beta_fast", 32), ("beta_slow", 1))
    )
    if rope.own.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, columns - 1)
    ramp = np.clip((np.arange(columns // 2) - low) / (high - low + 0.001 * (high == low)), 0, 1)
    return np.asarray(1 / (ramp / rope.factor + 1 - ramp), np.float32)


def _frequencies(rope: Rope, columns: int) -> np.ndarray:
    powers = np.arange(0, columns, 2, dtype=np.float32) / np.float32(columns)
    return np.asarray(1.0 / (np.float32(rope.theta) ** powers), np.float32)
