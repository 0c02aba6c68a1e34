"""Which tensor of a GGUF file gets which type: llama.cpp's rules, reproduced.

A mixture such as Q4_K_M uses one type for most tensors and spends more bits where they matter: the output
head, some layers' attn_v and ffn_down, more in models with grouped queries or eight experts. Rows that are
not a whole number of blocks fall back to a type with smaller blocks. Source: ``llama_tensor_get_type`` and
its helpers in llama.cpp's src/llama-quant.cpp (revision 0c1e570), matched tensor by tensor against the
library in tests/golden.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantize.errors import BadInput
from quantize.kernels.block_types import NEEDS_IMATRIX, FileType, Type, block_size

T = Type


@dataclass(frozen=True)
class ModelShape:
    """What the rules ask of a model. ``heads`` and ``kv_heads`` are those of the first layer."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int

    @classmethod
    def from_kvs(cls, kvs: Mapping[str, Any], architecture: str) -> "ModelShape":
        """From GGUF metadata (key -> plain value)."""

        def first(key: str, default: int) -> int:
            value = kvs.get(f"{architecture}.{key}", default)
            return int(value[0] if isinstance(value, (list, tuple)) else value)

        heads = first("attention.head_count", 0)
        experts = first("expert_count", 0)
        return cls(
            architecture,
            first("block_count", 0),
            heads,
            first("attention.head_count_kv", heads),
            experts if experts > 1 else 0,
        )

    @property
    def gqa(self) -> int:
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """What llama.cpp calls LLM_TYPE_70B, guessed there from the number of layers too."""
        if self.architecture == "llama":
            return self.layers == 80 and self.heads != self.kv_heads and self.experts != 8
        return self.layers == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.architecture)


@dataclass(frozen=True)
class Spec:
    """A tensor to be typed: ``shape`` rows first, ``lossless`` the type it has in the lossless file."""

    name: str
    shape: tuple[int, ...]
    lossless: Type


@dataclass(frozen=True)
class Choice:
    """``why`` is empty unless the rows did not fit the type that the mixture ``meant`` for it."""

    kind: Type
    meant: Type
    why: str = ""


@dataclass(frozen=True)
class Overrides:
    """The options of llama-quantize that change types."""

    tensor_types: tuple[tuple[str, Type], ...] = ()  # (regular expression, type), the first that matches wins
    output: Type | None = None
    token_embedding: Type | None = None
    pure: bool = False
    leave_output: bool = False


def write_order(name: str) -> tuple[int, str]:
    """Sort key of the order in which llama-quantize goes through (and writes) tensors."""
    match = re.match(r"blk\.(-?\d+)\.", name)
    return (int(match[1]) if match else -1, name)


# Tensors that llama.cpp's converter stores in F32 whatever the file's type. Beside these: one dimension,
# norms, biases.
_ALWAYS_F32 = re.compile(
    r"(^|\.)(ffn_gate_inp|ffn_gate_inp_shexp|position_embd|token_types|ssm_conv1d(_[qkv])?|shortconv\.conv|time_mix_first|"
    r"time_mix_w[12]|time_mix_decay_w[12]|time_mix_lerp_fused|altup_correct_coef|altup_predict_coef|indexer\.proj)\.weight$"
)


def lossless_type(name: str, shape: tuple[int, ...], source: Type) -> Type:
    """The type a tensor has in the file that llama.cpp's converter makes with ``source`` as its type."""
    if (
        len(shape) <= 1
        or name.endswith("_norm.weight")
        or not name.endswith(".weight")
        or _ALWAYS_F32.search(name)
    ):
        return T.F32
    return source


_NEVER = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip


def may_be_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp's quantizer quantizes such a tensor at all."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) < 2 or not name.endswith("weight"):
        return False
    return name not in ("position_embd.weight", "token_types.weight") and not any(
        part in name for part in _NEVER
    )


def category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")


#: for what would need importances that nothing can give: more bits, as its few tensors cost little
WITHOUT_IMPORTANCES = T.Q4_K
_V_LIKE = ("attn_v", "attn_qkv", "attn_kv_b")
_FALLBACK = {
    **dict.fromkeys((T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}


def fallback(kind: Type, columns: int) -> Type:
    """A type whose blocks fit rows of ``columns`` weights: ``kind`` itself where they do, F16 where nothing
    else does."""
    if columns % block_size(kind) == 0:
        return kind
    smaller = _FALLBACK.get(kind, kind)
    return smaller if columns % block_size(smaller) == 0 else T.F16


def requires_imatrix(name: str, kind: Type, file_type: FileType) -> bool:
    if category(name) in ("token_embd", "output"):
        return False
    return kind in NEEDS_IMATRIX or (kind is T.Q2_K and file_type.name == "q2_k_s")


def choose_types(
    tensors: Iterable[Spec],
    file_type: FileType,
    model: ModelShape,
    *,
    overrides: Overrides | None = None,
    has_imatrix: bool = False,
    unseen: frozenset[str] = frozenset(),
) -> dict[str, Choice]:
    """The type of every tensor: name -> Choice, in the order in which llama-quantize writes them.

    ``unseen``: tensors that no text's importances reach. llama-quantize refuses to make a type of them that
    needs importances; they get ``WITHOUT_IMPORTANCES`` instead.

    Errors: BadInput where an override is not a regular expression, or matches no tensor.
    """
    given = overrides or Overrides()
    ordered = sorted(tensors, key=lambda spec: write_order(spec.name))
    if not file_type.quantized:
        return {
            spec.name: Choice(kind, kind)
            for spec in ordered
            for kind in [lossless_type(spec.name, spec.shape, file_type.default)]
        }
    rules = _Rules(file_type, model, [spec.name for spec in ordered], given, has_imatrix, unseen)
    return {spec.name: rules.choose(spec) for spec in ordered}


class _Rules:
    """The rules count tensors as they go by, so one instance serves one pass over the tensors in write
    order."""

    def __init__(
        self,
        file_type: FileType,
        model: ModelShape,
        names: Sequence[str],
        given: Overrides,
        has_imatrix: bool,
        unseen: frozenset[str],
    ):
        self.file_type, self.model, self.given, self.has_imatrix = file_type, model, given, has_imatrix
        self.unseen = unseen
        self.tied = "output.weight" not in names
        self.v_total = sum(category(name) in _V_LIKE for name in names)
        self.seen = {"attn_v": 0, "ffn_down": 0, "ffn_gate": 0, "ffn_up": 0}
        self.patterns: list[tuple[re.Pattern[str], Type]] = []
        for pattern, kind in given.tensor_types:
            try:
                self.patterns.append((re.compile(pattern.lower()), kind))
            except re.error as error:
                raise BadInput(f"tensor type {pattern!r}: not a regular expression ({error})") from None
            if not any(self.patterns[-1][0].search(name) for name in names):
                raise BadInput(
                    f"tensor type {pattern}: matches no tensor of this model (names look like {names[-1]})"
                )

    def choose(self, spec: Spec) -> Choice:
        name, kind = spec.name, category(spec.name)
        allowed = may_be_quantized(name, spec.shape) and not (
            self.given.leave_output and name == "output.weight"
        )
        if not allowed:
            return Choice(spec.lossless, spec.lossless)
        override = next((t for pattern, t in self.patterns if pattern.search(name)), None)
        named = name.startswith("per_layer") and override is not None
        if self.given.token_embedding is not None and kind == "token_embd" and not named:
            return Choice(self.given.token_embedding, self.given.token_embedding)
        if self.given.output is not None and kind == "output":
            return Choice(self.given.output, self.given.output)
        if override is not None:
            meant = override
        elif self.given.pure:
            meant = self.file_type.default
        else:
            meant = self._mixture(name, kind, spec.shape)
        fitted = fallback(meant, spec.shape[-1])
        if override is None and name in self.unseen and requires_imatrix(name, fitted, self.file_type):
            why = f"no text's importances reach it, which {fitted.name} needs"
            return Choice(fallback(WITHOUT_IMPORTANCES, spec.shape[-1]), meant, why)
        why = "" if fitted is meant else f"rows of {spec.shape[-1]} are not a multiple of {block_size(meant)}"
        return Choice(fitted, meant, why)

    def _mixture(self, name: str, kind: str, shape: tuple[int, ...]) -> Type:
        ftype, default = self.file_type.name, self.file_type.default
        if kind == "output" or (self.tied and kind == "token_embd"):
            return self._head(ftype, default, shape[-1])
        if ftype == "mxfp4_moe":  # experts, and whatever else has three axes
            return default if len(shape) > 2 and shape[-3] > 1 else T.Q8_0
        if kind == "token_embd":
            return self._token_embedding(ftype, default)
        if ftype in ("iq2_xxs", "iq2_xs", "iq1_s", "iq2_s", "iq2_m", "iq1_m"):
            return self._very_low(name, kind, ftype, default)
        if kind in _V_LIKE:
            return self._attn_v(ftype, default)
        if kind == "attn_k":
            if self.model.experts == 8:
                return T.Q8_0
            return {"iq3_xs": T.IQ3_XXS, "iq3_xxs": T.IQ2_S}.get(ftype, default)
        if kind == "attn_q":
            return {"iq3_xs": T.IQ3_XXS, "iq3_xxs": T.IQ2_S}.get(ftype, default)
        if kind == "ffn_down":
            return self._ffn_down(name, ftype, default)
        if kind == "attn_output":
            return self._attn_output(ftype, default)
        if kind in ("ffn_gate", "ffn_up"):
            layer, layers = self._layer(name, kind)
            return T.IQ3_XXS if ftype == "iq3_xs" and layers // 8 <= layer < 7 * layers // 8 else default
        return default

    def _head(self, ftype: str, default: Type, columns: int) -> Type:
        """The output matrix, or the token embedding where it serves as one."""
        if self.given.output is not None:
            return self.given.output
        falcon = self.model.architecture == "falcon"
        if ftype == "mxfp4_moe" or falcon or columns % block_size(default):
            return T.Q8_0
        if ftype in ("iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq2_s", "iq2_m", "iq1_m"):
            return T.Q5_K
        return default if default is T.Q8_0 else T.Q6_K

    def _token_embedding(self, ftype: str, default: Type) -> Type:
        if ftype in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
            return T.Q2_K
        if ftype in ("iq2_s", "iq2_m", "iq3_xxs"):
            return T.IQ3_S
        return T.Q4_K if ftype in ("tq1_0", "tq2_0") else default

    def _very_low(self, name: str, kind: str, ftype: str, default: Type) -> Type:
        better = T.IQ3_S if ftype in ("iq2_s", "iq2_m") else T.Q2_K
        if kind in _V_LIKE:
            self.seen["attn_v"] += 1
            return T.Q4_K if self.model.gqa >= 4 or self.model.experts >= 4 else better
        if self.model.experts == 8 and kind == "attn_k":
            return T.Q4_K
        if kind == "ffn_down":
            position = self._count("ffn_down")
            return better if position < self.model.layers // 8 else default
        if kind == "attn_output":
            if self.model.experts == 8:
                return T.Q5_K
            return {"iq1_s": T.IQ2_XXS, "iq1_m": T.IQ2_XXS, "iq2_s": T.IQ3_S, "iq2_m": T.IQ3_S}.get(
                ftype, default
            )
        return default

    def _attn_v(self, ftype: str, default: Type) -> Type:
        position, grouped = self._count("attn_v"), self.model.gqa >= 4
        kind = default
        if ftype == "q2_k":
            kind = T.Q4_K if grouped else T.Q3_K
        elif ftype == "q2_k_s" and grouped:
            kind = T.Q4_K
        elif ftype == "iq3_xxs":
            kind = T.Q4_K if grouped else T.IQ3_XXS if self.has_imatrix else T.IQ3_S
        elif (ftype in ("iq3_xs", "iq3_s") and grouped) or ftype == "iq3_m":
            kind = T.Q4_K
        elif ftype == "q3_k_m":
            kind = T.Q5_K if position < 2 else T.Q4_K
        elif ftype == "q3_k_l" or (ftype in ("iq4_nl", "iq4_xs") and grouped):
            kind = T.Q5_K
        elif ftype in ("q4_k_m", "q5_k_m") and more_bits(position, self.v_total):
            kind = T.Q6_K
        elif ftype == "q4_k_s" and position < 4:
            kind = T.Q5_K
        if self.model.is_70b and kind in (T.Q3_K, T.Q4_K):
            kind = T.Q5_K  # eight query heads share this tensor there: it is small
        return T.Q8_0 if self.model.experts == 8 else kind

    def _ffn_down(self, name: str, ftype: str, default: Type) -> Type:
        layer, layers = self._layer(name, "ffn_down")
        early, falcon = layer < layers // 8, self.model.architecture == "falcon"
        if ftype == "q2_k":
            return T.Q3_K
        if ftype == "q2_k_s":
            return T.Q4_K if early else default
        if ftype == "iq3_xxs" and not self.has_imatrix:
            return T.Q4_K if early else T.Q3_K
        if ftype == "q3_k_m":
            if layer < layers // 16:
                return T.Q5_K
            return T.Q4_K if not falcon or more_bits(layer, layers) else T.Q3_K
        if ftype == "iq3_m":
            return T.Q4_K if early or (self.model.experts == 8 and more_bits(layer, layers)) else default
        if ftype == "q3_k_l":
            return T.Q4_K if falcon else T.Q5_K
        if ftype == "q4_k_m" and falcon:
            return T.Q6_K if layer < layers // 16 else T.Q5_K if more_bits(layer, layers) else T.Q4_K
        if ftype in ("q4_k_m", "q5_k_m"):
            return T.Q6_K if more_bits(layer, layers) else default
        if ftype in ("iq4_nl", "iq4_xs") and early and not self.has_imatrix:
            return T.Q5_K
        if ftype == "q4_k_s" and not falcon and early:
            return T.Q5_K
        if ftype in ("q4_0", "q5_0") and self.has_imatrix and early:
            return T.Q4_1 if ftype == "q4_0" else T.Q5_1
        return default

    def _attn_output(self, ftype: str, default: Type) -> Type:
        if self.model.architecture == "falcon":
            return T.Q4_K if ftype == "q3_k_l" else default
        if self.model.experts == 8:
            eight = (
                "q2_k",
                "iq3_xs",
                "iq3_xxs",
                "q3_k_s",
                "q3_k_m",
                "iq4_nl",
                "q4_k_s",
                "q4_k_m",
                "iq3_s",
                "iq3_m",
                "iq4_xs",
            )
            return T.Q5_K if ftype in eight else default
        return {"q2_k": T.Q3_K, "iq3_xxs": T.IQ3_S, "q3_k_m": T.Q4_K, "q3_k_l": T.Q5_K, "iq3_m": T.Q4_K}.get(
            ftype, default
        )

    def _count(self, kind: str) -> int:
        self.seen[kind] += 1
        return self.seen[kind] - 1

    def _layer(self, name: str, kind: str) -> tuple[int, int]:
        """(position, number of layers): counted, but read from the name in models with experts."""
        position = self._count(kind)
        if self.model.experts > 1:
            position = write_order(name)[0]
            if not 0 <= position < self.model.layers:
                raise BadInput(f"tensor {name}: its layer is not among the model's {self.model.layers}")
        return position, self.model.layers


def more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
