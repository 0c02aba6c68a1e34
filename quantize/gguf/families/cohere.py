"""Cohere Command-R and Command-R7B (``Cohere2``: sliding windows, no rotation in the global layers). The head
is always tied."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ATTENTION,
    F32,
    HEAD,
    MLP,
    STRING,
    U32,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.gemma import layer_types

NORM = Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm")
ENDS = (Rule("token_embd", "model.embed_tokens"), Rule("output_norm", "model.norm"), HEAD)


def many_layers(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("use_qk_norm"))


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h)
    if h.find("model_max_length"):
        kvs["context_length"] = (h["model_max_length"], U32)
    return unscaled(kvs | {"logit_scale": (h["logit_scale"], F32)})


def kvs2(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | {
        "logit_scale": (h["logit_scale"], F32),
        "attention.sliding_window": (h["sliding_window"], U32),
        "vocab_size": (h["vocab_size"], U32),
        "rope.dimension_count": (h.head_dim, U32),
    }
    return unscaled(kvs)


def unscaled(kvs: KVs) -> KVs:
    """With the type that llama.cpp's converter writes where nothing is scaled."""
    return kvs if "rope.scaling.type" in kvs else kvs | {"rope.scaling.type": ("none", STRING)}


def check(h: Hyperparameters) -> list[Note]:
    if bool(h.find("use_qk_norm")) != (h.layers >= 64):
        raise Unsupported(
            f"{h.source}: use_qk_norm is {bool(h.find('use_qk_norm'))} with {h.layers} "
            "layers; llama.cpp expects such norms from 64 layers on, and none below"
        )
    return []


def check2(h: Hyperparameters) -> list[Note]:
    if layer_types(h, 4) != [bool((index + 1) % 4) for index in range(h.layers)]:
        raise Unsupported(
            f"{h.source}: layer_types must repeat three sliding layers "
            "and a global one, as llama.cpp's cohere2 has built in"
        )
    return []


COHERE = Family(
    architecture="command-r",
    layer=(
        NORM,
        *ATTENTION,
        Rule("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm", when=many_layers),
        Rule("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm", when=many_layers),
        *MLP,
    ),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "rope_theta": 500000.0,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    check=check,
    head="never",
)  # fmt: skip
COHERE2 = Family(
    architecture="cohere2",
    layer=(NORM, *ATTENTION, *MLP),
    ends=ENDS,
    kvs=kvs2,
    defaults={
        "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "logit_scale": 0.0625,
        "sliding_window": 4096, "tie_word_embeddings": True,
    },
    check=check2,
    head="never",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return COHERE if checkpoint.architecture == "CohereForCausalLM" else COHERE2
