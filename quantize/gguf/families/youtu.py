"""Youtu: DeepSeek V3's attention in a model without experts."""

from dataclasses import replace

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families import deepseek3
from quantize.gguf.families.decoder import Family
from quantize.gguf.families.deepseek2 import LAYER, kvs

FAMILY = replace(
    deepseek3.FAMILY,
    layer=LAYER,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 131072,
        "rope_interleave": True,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "tie_word_embeddings": True,
    },
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
