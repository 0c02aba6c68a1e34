"""Llama 2 and 3, Mistral and what is built like them (Yi, DeepSeek-coder). q and k rows are permuted for
llama.cpp's rotation."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, MLP, NORMS, U32, Family, KVs, common_kvs, linear
from quantize.gguf.families.operations import Operation, RopePermutation
from quantize.gguf.families.rope import FACTORS, FREQUENCIES


def permute_q(h: Hyperparameters) -> Operation:
    return RopePermutation(h.heads)


def permute_k(h: Hyperparameters) -> Operation:
    return RopePermutation(h.kv_heads)


PERMUTED_ATTENTION = (
    linear("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj", permute_q),
    linear("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj", permute_k),
    linear("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    linear("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
)
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
}


def kvs(h: Hyperparameters) -> KVs:
    h.config.setdefault("head_dim", h.head_dim)
    h.config.setdefault("num_key_value_heads", h.kv_heads)
    return common_kvs(h) | {"vocab_size": (h["vocab_size"], U32), "rope.dimension_count": (h.head_dim, U32)}


#: llama.cpp's llama, minicpm and granite
ROPE = frozenset((FREQUENCIES, FACTORS))


def window_note(h: Hyperparameters) -> list[Note]:
    window = h.find("sliding_window")
    if not window or window >= h["max_position_embeddings"]:
        return []
    return [
        Note(
            tensor="*",
            what=f"sliding window of {window} tokens not kept: llama.cpp attends to the whole context",
            why="its llama architecture has no sliding window; logits agree up to that length",
        )
    ]


LLAMA = Family(
    architecture="llama",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MLP),
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults=DEFAULTS,
)
MISTRAL = Family(
    architecture="llama",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MLP),
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults={
        **DEFAULTS,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": None,
    },
    check=window_note,
)


def family(checkpoint: Checkpoint) -> Family:
    return MISTRAL if checkpoint.architecture in ("MistralForCausalLM", "MistralModel") else LLAMA
