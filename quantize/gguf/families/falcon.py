"""Falcon 7B, 40B, 11B. q, k, v come interleaved by key-value group and leave as all q, all k, all v."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import F32, HEAD, STRING, U32, Family, KVs, OneOf, Rule, plain
from quantize.gguf.families.operations import Operation, UngroupQkv
from quantize.gguf.families.rope import unusual_rope


def groups(h: Hyperparameters) -> int:
    if h.find("new_decoder_architecture"):
        return int(h.find("num_kv_heads", "n_head_kv") or h.heads)
    return 1 if h["multi_query"] else h.heads


def ungroup(h: Hyperparameters) -> Operation:
    return UngroupQkv(groups(h), h.heads // groups(h))


def kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (h.find("max_position_embeddings") or 2048, U32),
        "tensor_data_layout": ("jploski", STRING),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h.find("ffn_hidden_size") or 4 * h.hidden, U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (groups(h), U32),
        "attention.layer_norm_epsilon": (h["layer_norm_epsilon"], F32),
    } | unusual_rope(h)


def check(h: Hyperparameters) -> list[Note]:
    for name, wrong in (("alibi", True), ("parallel_attn", False), ("bias", True)):
        if h.find(name) is wrong:
            raise Unsupported(f"{h.source}: {name} is {wrong}, which llama.cpp's falcon does not compute")
    return []


FAMILY = Family(
    architecture="falcon",
    layer=(
        OneOf(
            (
                (plain("blk.{i}.attn_norm", "transformer.h.{i}.input_layernorm"),),
                (
                    plain("blk.{i}.attn_norm_2", "transformer.h.{i}.ln_attn"),
                    plain("blk.{i}.attn_norm", "transformer.h.{i}.ln_mlp"),
                ),
            )
        ),
        Rule("blk.{i}.attn_qkv", "transformer.h.{i}.self_attention.query_key_value", ungroup),
        Rule("blk.{i}.attn_output", "transformer.h.{i}.self_attention.dense"),
        Rule("blk.{i}.ffn_up", "transformer.h.{i}.mlp.dense_h_to_4h"),
        Rule("blk.{i}.ffn_down", "transformer.h.{i}.mlp.dense_4h_to_h"),
    ),
    ends=(
        Rule("token_embd", "transformer.word_embeddings"),
        plain("output_norm", "transformer.ln_f"),
        HEAD,
    ),
    kvs=kvs,
    defaults={
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    check=check,
    prefix="transformer.",
    activations=("gelu",),
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
