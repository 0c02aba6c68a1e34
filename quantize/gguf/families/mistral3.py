"""Mistral Small 3.1 and later, and Ministral 3: Llama's attention, YaRN, and queries that grow with the
position (``llama_4_scaling_beta``)."""

from dataclasses import replace

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import F32, Family, KVs
from quantize.gguf.families.llama import LLAMA, MISTRAL, kvs
from quantize.gguf.families.rope import read_rope


def mistral3_kvs(h: Hyperparameters) -> KVs:
    rope = read_rope(h)
    all_dim, beta = (rope.own.get(name) for name in ("mscale_all_dim", "llama_4_scaling_beta"))
    found = kvs(h)
    # llama.cpp makes the factor of one by the multiplier; any other one is a key
    if rope.kind == "yarn" and all_dim and rope.attention == 1:
        found.pop("rope.scaling.attn_factor", None)
        found["rope.scaling.yarn_log_multiplier"] = (float(all_dim), F32)
    if beta:
        found["attention.temperature_scale"] = (float(beta), F32)
    return found


MINISTRAL3 = replace(
    LLAMA,
    architecture="mistral3",
    kvs=mistral3_kvs,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
    },
)
MISTRAL3 = replace(MISTRAL, architecture="mistral3", kvs=mistral3_kvs, multimodal=True)


def family(checkpoint: Checkpoint) -> Family:
    return MINISTRAL3 if checkpoint.architecture == "Ministral3ForCausalLM" else MISTRAL3
