"""StarCoder 1 and SantaCoder (GPT-BigCode): GPT-2 with one head of keys and values for all queries."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import F32, HEAD, U32, Family, KVs, Rule, plain
from quantize.gguf.families.operations import COPY, Operation, UngroupQkv


def fused(h: Hyperparameters) -> Operation:
    """Rows of q, k and v: one below the other, or head by head where each has its own keys."""
    return COPY if h["multi_query"] else UngroupQkv(h.heads)


def kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (h["n_positions"], U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h.find("n_inner") or 4 * h.hidden, U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (1 if h["multi_query"] else h.heads, U32),
        "attention.layer_norm_epsilon": (h["layer_norm_epsilon"], F32),
    }


FAMILY = Family(
    architecture="starcoder",
    layer=(
        plain("blk.{i}.attn_norm", "transformer.h.{i}.ln_1"),
        plain("blk.{i}.attn_qkv", "transformer.h.{i}.attn.c_attn", op=fused),
        plain("blk.{i}.attn_output", "transformer.h.{i}.attn.c_proj"),
        plain("blk.{i}.ffn_norm", "transformer.h.{i}.ln_2"),
        plain("blk.{i}.ffn_up", "transformer.h.{i}.mlp.c_fc"),
        plain("blk.{i}.ffn_down", "transformer.h.{i}.mlp.c_proj"),
    ),
    ends=(
        Rule("token_embd", "transformer.wte"),
        Rule("position_embd", "transformer.wpe"),
        plain("output_norm", "transformer.ln_f"),
        HEAD,
    ),
    kvs=kvs,
    rope=None,
    defaults={
        "n_positions": 1024, "layer_norm_epsilon": 1e-5, "multi_query": True, "tie_word_embeddings": True,
    },
    activations=("gelu_pytorch_tanh",),
    prefix="transformer.",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
