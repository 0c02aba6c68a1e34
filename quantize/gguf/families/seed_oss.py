"""Seed-OSS: Qwen 2's attention with its own width of heads."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.decoder import ENDS, Family, Rule, common_kvs, linear

FAMILY = Family(
    architecture="seed_oss",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        linear("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        linear("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        linear("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
        Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=ENDS,
    kvs=common_kvs,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 524288, "head_dim": 128,
        "num_key_value_heads": 8,
    },
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
