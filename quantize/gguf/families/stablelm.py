"""StableLM 3B, 2 1.6B and 2 12B (norms per head on q and k, attention and MLP in parallel)."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, BOOL, F32, HEAD, MLP, U32, Family, KVs, Rule, plain
from quantize.gguf.families.mixtral import stack
from quantize.gguf.families.rope import read_rope, unusual_rope


def per_head(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("qk_layernorm"))


def sequential(h: Hyperparameters, layer: int) -> bool:
    return not h.find("use_parallel_residual")


def heads(h: Hyperparameters) -> int:
    return h.heads


def kv_heads(h: Hyperparameters) -> int:
    return h.kv_heads


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
        "attention.head_count_kv": (h.kv_heads, U32),
        "use_parallel_residual": (bool(h["use_parallel_residual"]), BOOL),
        "attention.layer_norm_epsilon": (h.need("layer_norm_eps", "norm_eps"), F32),
    } | unusual_rope(h)


FAMILY = Family(
    architecture="stablelm",
    layer=(
        plain("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        plain("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm", when=sequential),
        *ATTENTION,
        Rule("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_layernorm.norms.{x}", stack, when=per_head,
        count=heads),
        Rule("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_layernorm.norms.{x}", stack, when=per_head,
        count=kv_heads),
        *MLP,
    ),
    ends=(
        Rule("token_embd", "model.embed_tokens"),
        plain("output_norm", "model.norm"),
        HEAD,
    ),
    kvs=kvs,
    defaults={
        "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    head="required",
    rotated=rotated,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
