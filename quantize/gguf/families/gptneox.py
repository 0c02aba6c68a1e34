"""GPT-NeoX and Pythia: q, k, v interleaved by head."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, F32, U32, Family, KVs, Rule, plain
from quantize.gguf.families.operations import Operation, UngroupQkv
from quantize.gguf.families.rope import read_rope, unusual_rope


def by_head(h: Hyperparameters) -> Operation:
    return UngroupQkv(h.heads)


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (h["max_position_embeddings"], U32),
        "embedding_length": (h.hidden, U32),
        "block_count": (h.layers, U32),
        "feed_forward_length": (h["intermediate_size"], U32),
        "rope.dimension_count": (rotated(h), U32),
        "attention.head_count": (h.heads, U32),
        "use_parallel_residual": (bool(h["use_parallel_residual"]), BOOL),
        "attention.layer_norm_epsilon": (h["layer_norm_eps"], F32),
    } | unusual_rope(h)


FAMILY = Family(
    architecture="gptneox",
    layer=(
        plain("blk.{i}.attn_norm", "gpt_neox.layers.{i}.input_layernorm"),
        plain("blk.{i}.ffn_norm", "gpt_neox.layers.{i}.post_attention_layernorm"),
        plain("blk.{i}.attn_qkv", "gpt_neox.layers.{i}.attention.query_key_value", op=by_head),
        plain("blk.{i}.attn_output", "gpt_neox.layers.{i}.attention.dense"),
        plain("blk.{i}.ffn_up", "gpt_neox.layers.{i}.mlp.dense_h_to_4h"),
        plain("blk.{i}.ffn_down", "gpt_neox.layers.{i}.mlp.dense_4h_to_h"),
    ),
    ends=(
        Rule("token_embd", "gpt_neox.embed_in"),
        plain("output_norm", "gpt_neox.final_layer_norm"),
        Rule("output", "embed_out", suffixes=(), optional=(".weight",)),
    ),
    kvs=kvs,
    defaults={
        "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "use_parallel_residual": True,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
    # llama.cpp has the tanh form, which the 20 B model (gelu_fast) has too
    activations=("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
    prefix="gpt_neox.",
    head="required",
    rotated=rotated,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
