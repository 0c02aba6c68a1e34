"""Gemma 1 to 3, text only. transformers multiplies a normalised row by 1 + weight, llama.cpp by what is
stored."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ARRAY,
    ATTENTION,
    F32,
    HEAD,
    MLP,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.operations import Add, Operation
from quantize.gguf.families.rope import unusual_rope


def one(h: Hyperparameters) -> Operation:
    return Add(1.0)


SANDWICH = (
    Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm", one),
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm", one),
    Rule("blk.{i}.ffn_norm", "model.layers.{i}.pre_feedforward_layernorm", one),
    Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm", one),
)
QK_NORMS = (
    Rule("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm", one),
    Rule("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm", one),
)
ENDS = (
    Rule("token_embd", "model.embed_tokens"),
    Rule("output_norm", "model.norm", one),
    HEAD,
)
GEMMA3_DEFAULTS = {
    "max_position_embeddings": 131072, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}  # fmt: skip


def layer_types(h: Hyperparameters, period: int) -> list[bool]:
    """True where a layer has a sliding window."""
    types = h.find("layer_types")
    if types:
        return [kind == "sliding_attention" for kind in types]
    period = int(h.find("sliding_window_pattern", "_sliding_window_pattern") or period)
    return [bool((index + 1) % period) for index in range(h.layers)]


def pattern_kv(h: Hyperparameters, period: int) -> KVs:
    """The pattern of sliding layers, where it is not the one llama.cpp assumes (every ``period``-th layer is
    global)."""
    sliding = layer_types(h, period)
    usual = [bool((index + 1) % period) for index in range(h.layers)]
    return {} if sliding == usual else {"attention.sliding_window_pattern": (sliding, ARRAY)}


def gemma3_kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h)
    if (cap := h.find("final_logit_softcapping")) is not None:
        kvs["final_logit_softcapping"] = (cap, F32)
    if any(layer_types(h, 6)):
        kvs["attention.sliding_window"] = (h["sliding_window"], U32)
        kvs |= pattern_kv(h, 6)
    return kvs


def gemma3_check(h: Hyperparameters) -> list[Note]:
    if h.find("attn_logit_softcapping"):
        raise Unsupported(f"{h.source}: attn_logit_softcapping in Gemma 3, which llama.cpp does not expect")
    check_scale(h, 62)
    return []


def check_scale(h: Hyperparameters, layers_27b: int) -> None:
    """llama.cpp scales queries by head_dim ** -0.5, but by (hidden / heads) ** -0.5 in the 27 B model, which
    it recognises by the number of layers."""
    expected = h.hidden // h.heads if h.layers == layers_27b else h.head_dim
    if float(h["query_pre_attn_scalar"]) != expected:
        raise Unsupported(
            f"{h.source}: query_pre_attn_scalar {h['query_pre_attn_scalar']}, but llama.cpp scales the "
            f"queries of a model with {h.layers} layers by {expected} ** -0.5 and has no key to change that"
        )


def gemma_kvs(h: Hyperparameters) -> KVs:
    keys = (
        "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length",
        "attention.value_length",
    )  # fmt: skip
    common = common_kvs(h)
    return {key: common[key] for key in keys} | unusual_rope(h)


def gemma2_kvs(h: Hyperparameters) -> KVs:
    kvs = gemma_kvs(h)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        # llama.cpp caps by its own default where the key is absent; a cap this high changes nothing
        kvs[key] = (h.config.get(key) or 1e9, F32)
    return kvs | {"attention.sliding_window": (h["sliding_window"], U32)} | pattern_kv(h, 2)


def gemma2_check(h: Hyperparameters) -> list[Note]:
    check_scale(h, 46)
    return []


COMMON = {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
# early configs say gelu and mean the tanh form, as transformers assumes too
TANH = (
    "gelu_pytorch_tanh",
    "gelu",
)
GEMMA = Family(
    architecture="gemma",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm", one),
        Rule("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm", one),
        *ATTENTION,
        *MLP,
    ),
    ends=ENDS,
    kvs=gemma_kvs,
    defaults={**COMMON, "max_position_embeddings": 8192, "num_key_value_heads": 16, "rope_theta": 10_000.0},
    head="never",
    activations=TANH,
)
GEMMA2 = Family(
    architecture="gemma2",
    layer=(*SANDWICH, *ATTENTION, *MLP),
    ends=ENDS,
    kvs=gemma2_kvs,
    defaults={
        **COMMON, "max_position_embeddings": 8192, "num_key_value_heads": 4, "rope_theta": 10_000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    check=gemma2_check,
    head="never",
    activations=TANH,
)  # fmt: skip
GEMMA3 = Family(
    architecture="gemma3",
    layer=(*SANDWICH, *ATTENTION, *QK_NORMS, *MLP),
    ends=ENDS,
    kvs=gemma3_kvs,
    defaults=GEMMA3_DEFAULTS,
    check=gemma3_check,
    activations=TANH,
)


def family(checkpoint: Checkpoint) -> Family:
    return {
        "GemmaForCausalLM": GEMMA,
        "Gemma2ForCausalLM": GEMMA2,
        "Gemma3ForCausalLM": GEMMA3,
        "Gemma3ForConditionalGeneration": replace(GEMMA3, multimodal=True),
    }[checkpoint.architecture]
