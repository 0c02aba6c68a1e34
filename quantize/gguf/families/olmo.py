"""OLMo 1 (norms without weights, q, k, v clamped) and OLMoE (every layer a mixture, q and k normalised
whole)."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ENDS,
    F32,
    HEAD,
    NORMS,
    QK_NORMS,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.llama import permute_k, permute_q
from quantize.gguf.families.qwen_moe import EXPERTS, ROUTER

ATTENTION = "model.layers.{i}.self_attn."
MLP = "model.layers.{i}.mlp."


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | {"attention.layer_norm_epsilon": (1e-5, F32)}  # fixed in the modelling code
    if (limit := h.find("clip_qkv")) is not None:
        kvs["attention.clamp_kqv"] = (limit, F32)
    return kvs


def check_experts(h: Hyperparameters) -> list[Note]:
    if h.kv_heads != h.heads:
        raise Unsupported(
            f"{h.source}: {h.kv_heads} heads of keys for {h.heads} of queries; llama.cpp's olmoe has as many"
        )
    for key in ("clip_qkv", "norm_topk_prob"):
        if h.find(key):
            raise Unsupported(f"{h.source}: {key} is {h.find(key)}, which llama.cpp's olmoe does not compute")
    return []


DEFAULTS = {"rope_theta": 10000.0, "tie_word_embeddings": False}
OLMO = Family(
    architecture="olmo",
    layer=(
        Rule("blk.{i}.attn_q", ATTENTION + "q_proj", permute_q),
        Rule("blk.{i}.attn_k", ATTENTION + "k_proj", permute_k),
        Rule("blk.{i}.attn_v", ATTENTION + "v_proj"),
        Rule("blk.{i}.attn_output", ATTENTION + "o_proj"),
        Rule("blk.{i}.ffn_gate", MLP + "gate_proj"),
        Rule("blk.{i}.ffn_up", MLP + "up_proj"),
        Rule("blk.{i}.ffn_down", MLP + "down_proj"),
    ),
    ends=(Rule("token_embd", "model.embed_tokens"), HEAD),
    kvs=kvs,
    defaults={**DEFAULTS, "max_position_embeddings": 2048},
)
OLMOE = Family(
    architecture="olmoe",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_q", ATTENTION + "q_proj"),
        Rule("blk.{i}.attn_k", ATTENTION + "k_proj"),
        Rule("blk.{i}.attn_v", ATTENTION + "v_proj"),
        Rule("blk.{i}.attn_output", ATTENTION + "o_proj"),
        *QK_NORMS,
        ROUTER,
        EXPERTS,
    ),
    ends=ENDS,
    kvs=common_kvs,
    defaults={
        **DEFAULTS, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    check=check_experts,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return OLMO if checkpoint.architecture == "OlmoForCausalLM" else OLMOE
