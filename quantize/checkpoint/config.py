"""config.json and generation_config.json, read within bounds and typed: every field that this program reads
is held against a table of kinds and ranges, and sizes against the tensors that are there, before anybody uses
one.

The table is strict about types and upper bounds, since an absurd size costs memory or time wherever it is
used, and lenient about the rest: fields may be missing or null, whole numbers may be written as 32.0, what is
not in the table is not looked at.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.terminal import printable

MAX_CONFIG_BYTES = 16 << 20
#: what float32 and a uint32 of a GGUF can hold
LARGEST_FLOAT, LARGEST_WHOLE = 3.4e38, 2**32 - 1


@dataclass(frozen=True)
class Whole:
    """A whole number, or ``many`` of them (one a layer, as some configs have it)."""

    least: int = 0
    most: int = LARGEST_WHOLE
    many: bool = False

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most:,}"

    def takes(self, value: Any) -> bool:
        if self.many and isinstance(value, list):
            return all(Whole(self.least, self.most).takes(item) for item in value)
        return type(value) in (int, float) and self.least <= value <= self.most and value == int(value)


@dataclass(frozen=True)
class Number:
    least: float = -LARGEST_FLOAT
    most: float = LARGEST_FLOAT
    many: bool = False

    def __str__(self) -> str:
        return "a number" if self == Number() else f"a number from {self.least:g} to {self.most:g}"

    def takes(self, value: Any) -> bool:
        if self.many and isinstance(value, list):
            return all(Number(self.least, self.most).takes(item) for item in value)
        if type(value) is int and abs(value) >= 1 << 63:  # torch takes no larger ones
            return False
        return type(value) in (int, float) and self.least <= value <= self.most


@dataclass(frozen=True)
class Other:
    """Any other kind: what it is called, and whether a value is one."""

    called: str
    takes: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.called


def _each(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


FLAG = Other("true or false", lambda value: isinstance(value, bool) or value in (0, 1))
TEXT = Other("a text", lambda value: isinstance(value, str))
TEXTS = Other("a list of texts", lambda value: _each(value, str))
WHOLES = Other(
    "a list of whole numbers", lambda value: Whole(-1, many=True).takes(value) and isinstance(value, list)
)
MAPPING = Other("an object", lambda value: isinstance(value, dict))
TEXT_OR_MAPPING = Other("a text or an object", lambda value: isinstance(value, (str, dict)))
TEXT_OR_WHOLE = Other(
    "a text or a whole number", lambda value: isinstance(value, str) or Whole().takes(value)
)
IDS = Other("a token id or a list of them", lambda value: Whole(-1, 2**31 - 1, many=True).takes(value))
FACTORS = Other(
    "a list of numbers",
    lambda value: _each(value, object) and Number(many=True).takes(value) and len(value) <= 65536,
)

LAYERS, EXPERTS = Whole(1, 10_000), Whole(0, 65_536, many=True)
HEADS, HEADS_EACH, WIDTH, WIDTHS = (
    Whole(1, 65_536),
    Whole(1, 65_536, many=True),
    Whole(1, 1 << 24),
    Whole(0, 1 << 24, many=True),
)
POSITIVE, EPSILON = Number(1e-30), Number(0, 1)

Kind = Whole | Number | Other
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")


def _fields(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


ROPE: dict[str, Kind] = {
    **_fields(TEXT, "rope_type", "type"),
    **_fields(
        POSITIVE,
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    **_fields(POSITIVE, "beta_fast", "beta_slow", "alpha"),
    **_fields(
        Number(), "attention_factor", "attn_factor", "extrapolation_factor", "mscale", "mscale_all_dim"
    ),
    **_fields(Number(), "short_mscale", "long_mscale"),
    **_fields(Number(0, 8), "partial_rotary_factor"),
    **_fields(FACTORS, "short_factor", "long_factor", "mrope_section"),
    **_fields(FLAG, "truncate", "finetuned", "mrope_interleaved"),
}
FIELDS: dict[str, Kind] = {
    **_fields(TEXT, "model_type", "transformers_weights"),
    **_fields(TEXTS, "architectures", "layer_types", "mlp_layer_types"),
    **_fields(TEXT_OR_MAPPING, "dtype", "torch_dtype"),
    **_fields(MAPPING, "quantization_config", "auto_map", "text_config", "vision_config", "audio_config"),
    **_fields(MAPPING, "rope_scaling", "rope_parameters"),
    **_fields(LAYERS, *LAYER_COUNTS),
    **_fields(EXPERTS, *EXPERT_COUNTS, *EXPERTS_USED, "n_shared_experts", "n_group", "topk_group"),
    **_fields(Whole(1, 1 << 24), "vocab_size", "padded_vocab_size"),
    **_fields(WIDTH, "hidden_size", "n_embd", "dim", "dim_model_base"),
    **_fields(HEADS, "num_attention_heads", "n_head", "n_heads"),
    **_fields(HEADS_EACH, "num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_head_kv"),
    **_fields(Whole(0, 65_536, many=True), "head_dim"),  # 0 in GLM 5: of another shape
    **_fields(
        WIDTHS, "intermediate_size", "n_inner", "hidden_dim", "ffn_hidden_size", "moe_intermediate_size"
    ),
    **_fields(WIDTHS, "shared_expert_intermediate_size", "rotary_dim"),
    **_fields(
        Whole(1, 65_536), "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"
    ),
    **_fields(
        Whole(0, 10_000, many=True), "first_k_dense_replace", "decoder_sparse_step", "no_rope_layer_interval"
    ),
    **_fields(Whole(1), "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length"),
    **_fields(
        Whole(1, 65_536), "n_positions"
    ),  # GPT-2, GPT-J and their like hold a mask of that many rows and columns
    **_fields(Whole(1), "original_max_position_embeddings"),
    **_fields(Whole(0, 2**63), "model_max_length", "max_length", "sliding_window"),
    **_fields(TEXT_OR_WHOLE, "sliding_window_pattern", "_sliding_window_pattern"),
    **_fields(WHOLES, "mlp_only_layers", "no_rope_layers"),
    **_fields(
        IDS, "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "mask_token_id"
    ),
    **_fields(EPSILON, "rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    **_fields(
        Number(1e-30, many=True), "rope_theta", "global_rope_theta", "local_rope_theta", "swa_rope_theta"
    ),
    **_fields(Number(1e-30, many=True), "rope_local_base_freq", "rotary_emb_base"),
    **_fields(Number(0, 1, many=True), "partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent"),
    **_fields(Number(), "logit_scale", "scale_emb", "scale_depth", "z_loss_weight", "routed_scaling_factor"),
    **_fields(
        Number(), "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"
    ),
    **_fields(POSITIVE, "query_pre_attn_scalar"),
    **_fields(Number(), "final_logit_softcapping", "attn_logit_softcapping"),
    **_fields(TEXT, "hidden_activation", "hidden_act", "activation_function", "activation"),
    **_fields(TEXT, "score_function", "scoring_func", "score_func", "topk_method"),
    **_fields(
        FLAG,
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "qk_layernorm",
        "use_qk_norm",
        "norm_topk_prob",
    ),
    **_fields(
        FLAG,
        "use_parallel_residual",
        "use_sliding_window",
        "new_decoder_architecture",
        "multi_query",
        "alibi",
    ),
}
GENERATION: dict[str, Kind] = {
    **_fields(IDS, "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    **_fields(Number(), "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    **_fields(FLAG, "do_sample"),
}
#: in parts of the config that are other models' (vision, audio): each layer is built when transformers makes
#: the model
_DEPTHS = (*LAYER_COUNTS, "depth", "num_blocks", "encoder_layers", "decoder_layers")
MAX_DEPTH_ELSEWHERE = 1000
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d{1,6})\.")
_EXPERT = re.compile(r"\.experts\.(\d{1,6})\.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight",
"tok_embeddings.weight",
               "backbone.embeddings.weight", "embeddings.word_embeddings.weight")  # fmt: skip
#: fields by which a model says that its embedding is not vocab_size x hidden_size
_OTHER_EMBEDDING = ("padded_vocab_size", "word_embed_proj_dim", "embedding_size", "text_config", "embd_dim")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, its fields of the kinds that ``FIELDS`` says; whole numbers are ints.

    Errors: BadInput where there is none, or it cannot be read; it names the field, its value and what was
    expected.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(
            f"{folder}: no config.json, so this is not a Hugging "
            "Face checkpoint; give the folder that holds it"
        )
    return checked(read_json(path, MAX_CONFIG_BYTES), str(path))


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, {} where there is none. Errors: BadInput."""
    path = folder / "generation_config.json"
    return _typed(read_json(path, MAX_CONFIG_BYTES), GENERATION, str(path), "") if path.is_file() else {}


def checked(config: dict[str, Any], where: str) -> dict[str, Any]:
    """``config`` with whole numbers as ints. Errors: BadInput for the first field that is not of its kind."""
    return _config(config, where, "")


def _config(config: dict[str, Any], where: str, prefix: str) -> dict[str, Any]:
    config = _typed(config, FIELDS, where, prefix)
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope:
            rope = _typed(rope, ROPE, where, f"{prefix}{key}.")
            for kind, inner in list(
                rope.items()
            ):  # by layer type: {"full_attention": {...}, "sliding_attention": {...}}
                if isinstance(inner, dict):
                    rope[kind] = _typed(inner, ROPE, where, f"{prefix}{key}.{kind}.")
                elif kind.endswith("_attention"):
                    if inner is not None:
                        raise _wrong(where, f"{prefix}{key}.{kind}", inner, MAPPING)
                    del rope[kind]
            for part, name in (
                (rope, key),
                *((rope[kind], f"{key}.{kind}") for kind in rope if isinstance(rope[kind], dict)),
            ):
                low, high = part.get("low_freq_factor"), part.get("high_freq_factor")
                if low is not None and high is not None and low > high:
                    raise _wrong(
                        where, f"{prefix}{name}.high_freq_factor", high, f"at least low_freq_factor, {low}"
                    )
            config[key] = rope
    for key, inner in config.items():
        if key == "text_config" and inner is not None:
            config[key] = _config(inner, where, f"{prefix}{key}.")
        elif isinstance(inner, dict):
            _bound_depths(inner, where, f"{prefix}{key}.")
    return config


def _typed(values: dict[str, Any], fields: Mapping[str, Kind], where: str, prefix: str) -> dict[str, Any]:
    typed = dict(values)
    for name, value in values.items():
        kind = fields.get(name)
        if kind is None or value is None:
            continue
        if not kind.takes(value):
            raise _wrong(where, prefix + name, value, kind)
        if isinstance(kind, Whole):
            typed[name] = [int(item) for item in value] if isinstance(value, list) else int(value)
    return typed


def _wrong(where: str, name: str, value: Any, expected: object) -> BadInput:
    return BadInput(
        f"{where}: {printable(name, 200)} is {printable(repr(value), 80)}; expected {expected}; "
        "fetch config and weights of the same model"
    )


def _bound_depths(values: dict[str, Any], where: str, prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _bound_depths(value, where, f"{prefix}{name}.")
        most = MAX_DEPTH_ELSEWHERE if name in _DEPTHS else EXPERTS.most if name in EXPERT_COUNTS else None
        if most is not None and isinstance(value, (int, float)) and not value <= most:
            raise _wrong(where, prefix + name, value, f"at most {most:,}")


def check_sizes(config: dict[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Hold counts and sizes against the tensors. Fewer layers than the tensors show are legal: the rest may
    predict ahead.

    Errors: BadInput, naming the field, its value, and what the tensors show.
    """
    nested = config.get("text_config")
    for part, prefix in ((config, ""), (nested if isinstance(nested, dict) else {}, "text_config.")):
        _check_layers(part, tensors, where, prefix)
        _check_experts(part, tensors, where, prefix)
        heads, groups = part.get("num_attention_heads"), part.get("num_key_value_heads")
        if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
            raise _wrong(
                where, f"{prefix}num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}"
            )
    if not any(config.get(name) for name in _OTHER_EMBEDDING):
        _check_embedding(config, tensors, where)


def _check_layers(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str, prefix: str
) -> None:
    shown = 1 + max((int(found[1]) for name in tensors for found in _LAYER.finditer(name)), default=-1)
    for name in LAYER_COUNTS:
        value = config.get(name)
        if value is not None and value > (shown or len(tensors)):
            raise _wrong(
                where,
                prefix + name,
                value,
                f"at most {shown or len(tensors)}, as many layers as the weights hold",
            )


def _check_experts(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str, prefix: str
) -> None:
    shown = 1 + max((int(found[1]) for name in tensors for found in _EXPERT.finditer(name)), default=-1)
    fused = [info.shape[0] for name, info in tensors.items() if ".experts." in name and len(info.shape) == 3]
    shown = max([shown, *fused])
    experts = [
        (name, config[name]) for name in EXPERT_COUNTS if isinstance(config.get(name), int) and config[name]
    ]
    for name, value in experts:
        if shown and value > shown:
            raise _wrong(where, prefix + name, value, f"at most {shown}, as many experts as the weights hold")
    for name in EXPERTS_USED:
        value = config.get(name)
        if experts and isinstance(value, int) and value > experts[0][1]:
            raise _wrong(where, prefix + name, value, f"at most {experts[0][1]}, the number of experts")


def _check_embedding(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> None:
    found = [info for name, info in tensors.items() if name.endswith(_EMBEDDINGS) and len(info.shape) == 2]
    if len(found) != 1:
        return
    for names, axis in ((("vocab_size",), 0), (("hidden_size", "n_embd"), 1)):
        for name in names:
            value = config.get(name)
            if value is not None and value != found[0].shape[axis]:
                what = "rows" if axis == 0 else "columns"
                raise _wrong(
                    where,
                    name,
                    value,
                    f"{found[0].shape[axis]}, the {what} of {printable(found[0].name, 100)}",
                )
