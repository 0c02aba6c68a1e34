"""BLOOM: ALiBi, a norm after the embedding, q, k, v interleaved by head."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import F32, HEAD, U32, Family, KVs, Rule, plain
from quantize.gguf.families.gptneox import by_head


def kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (h.find("seq_length") or h.hidden, U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (4 * h.hidden, U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (h.heads, U32),
        "attention.layer_norm_epsilon": (h["layer_norm_epsilon"], F32),
    }


FAMILY = Family(
    architecture="bloom",
    layer=(
        plain("blk.{i}.attn_norm", "transformer.h.{i}.input_layernorm"),
        plain("blk.{i}.attn_qkv", "transformer.h.{i}.self_attention.query_key_value", op=by_head),
        plain("blk.{i}.attn_output", "transformer.h.{i}.self_attention.dense"),
        plain("blk.{i}.ffn_norm", "transformer.h.{i}.post_attention_layernorm"),
        plain("blk.{i}.ffn_up", "transformer.h.{i}.mlp.dense_h_to_4h"),
        plain("blk.{i}.ffn_down", "transformer.h.{i}.mlp.dense_4h_to_h"),
    ),
    ends=(
        Rule("token_embd", "transformer.word_embeddings"),
        plain("token_embd_norm", "transformer.word_embeddings_layernorm"),
        plain("output_norm", "transformer.ln_f"),
        HEAD,
    ),
    kvs=kvs,
    rope=None,
    defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    prefix="transformer.",
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
