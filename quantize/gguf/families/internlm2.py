"""InternLM 2: Llama with its own names and q, k, v fused group by group (the queries of a key head, the key,
the value)."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import Family, KVs, Rule, common_kvs
from quantize.gguf.families.llama import DEFAULTS, permute_k, permute_q
from quantize.gguf.families.operations import COPY, Operation, Part


def part(h: Hyperparameters, start: int, stop: int, then: Operation) -> Operation:
    return Part((h.kv_heads, h.heads // h.kv_heads + 2, h.head_dim), 1, start, stop, then)


def queries(h: Hyperparameters) -> Operation:
    return part(h, 0, h.heads // h.kv_heads, permute_q(h))


def keys(h: Hyperparameters) -> Operation:
    return part(h, h.heads // h.kv_heads, h.heads // h.kv_heads + 1, permute_k(h))


def values(h: Hyperparameters) -> Operation:
    return part(h, h.heads // h.kv_heads + 1, h.heads // h.kv_heads + 2, COPY)


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h)


FUSED = "model.layers.{i}.attention.wqkv"
FAMILY = Family(
    architecture="internlm2",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.attention_norm"),
        Rule("blk.{i}.attn_q", FUSED, queries),
        Rule("blk.{i}.attn_k", FUSED, keys),
        Rule("blk.{i}.attn_v", FUSED, values),
        Rule("blk.{i}.attn_output", "model.layers.{i}.attention.wo"),
        Rule("blk.{i}.ffn_norm", "model.layers.{i}.ffn_norm"),
        Rule("blk.{i}.ffn_gate", "model.layers.{i}.feed_forward.w1"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.feed_forward.w2"),
        Rule("blk.{i}.ffn_up", "model.layers.{i}.feed_forward.w3"),
    ),
    ends=(
        Rule("token_embd", "model.tok_embeddings"),
        Rule("output_norm", "model.norm"),
        Rule("output", "output"),
    ),
    kvs=kvs,
    defaults=DEFAULTS,
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
