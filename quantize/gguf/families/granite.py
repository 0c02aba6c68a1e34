"""Granite, and MiniCPM 1 and 2, which llama.cpp computes with the same graph: Llama with four scaling
factors."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, F32, MLP, NORMS, U32, Family, KVs, common_kvs
from quantize.gguf.families.llama import DEFAULTS, PERMUTED_ATTENTION, ROPE


def granite_kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h)
    if h.head_dim == h.hidden // h.heads:  # the converter leaves out what llama.cpp computes anyway
        kvs = {
            key: value
            for key, value in kvs.items()
            if key not in ("attention.key_length", "attention.value_length")
        }
    kvs |= {"vocab_size": (h["vocab_size"], U32), "rope.dimension_count": (h.head_dim, U32)}
    for key, name in {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }.items():
        if h.find(name):
            kvs[key] = (h[name], F32)
    return kvs


def minicpm_kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "embedding_scale": (float(h["scale_emb"]), F32),
        "residual_scale": (h["scale_depth"] / h.layers**0.5, F32),
        "logit_scale": (h.hidden / h["dim_model_base"], F32),
    }


GRANITE = Family(
    architecture="granite",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MLP),
    ends=ENDS,
    kvs=granite_kvs,
    rope=ROPE,
    defaults={
        **DEFAULTS, "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)  # fmt: skip
MINICPM = Family(
    architecture="minicpm",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MLP),
    ends=ENDS,
    kvs=minicpm_kvs,
    rope=ROPE,
    # of the checkpoint's own configuration class
    defaults={**DEFAULTS, "scale_emb": 1, "dim_model_base": 1, "scale_depth": 1, "tie_word_embeddings": True},
)


def family(checkpoint: Checkpoint) -> Family:
    return GRANITE if checkpoint.architecture == "GraniteForCausalLM" else MINICPM
