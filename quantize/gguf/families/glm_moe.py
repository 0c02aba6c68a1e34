"""GLM 4.5 to 4.7: experts chosen by sigmoid scores with a correction, a shared expert, the first layers
dense. The light one (4.7 Flash) has DeepSeek's latent attention and is llama.cpp's deepseek2."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families import deepseek2
from quantize.gguf.families.ahead import BEHIND, SHARED_NORM
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import (
    ATTENTION,
    ENDS,
    QK_NORMS,
    U32,
    Ahead,
    Family,
    KVs,
    Rule,
    common_kvs,
)
from quantize.gguf.families.deepseek3 import BIAS, MIXTURE, later_layers, mixture_kvs
from quantize.gguf.families.phi import rotated

LATENT_EPSILON = 1e-6


def normed(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("use_qk_norm"))


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {"rope.dimension_count": (rotated(h), U32)} | mixture_kvs(h)


GLM4_MOE = Family(
    architecture="glm4moe",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        *ATTENTION,
        *(replace(rule, when=normed) for rule in QK_NORMS),
        *MIXTURE,
    ),
    ends=ENDS,
    kvs=kvs,
    rotated=rotated,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8, "first_k_dense_replace": 1, "moe_intermediate_size": 1408,
        "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "routed_scaling_factor": 1.0, "norm_topk_prob": True, "use_qk_norm": False,
        "num_nextn_predict_layers": 1,
    },
    leaves=later_layers,
)  # fmt: skip
GLM4_MOE = replace(GLM4_MOE, ahead=Ahead((*GLM4_MOE.layer, *BEHIND, SHARED_NORM)))


def lite_kvs(h: Hyperparameters) -> KVs:
    return deepseek2.kvs(h) | mixture_kvs(h)


def lite_check(h: Hyperparameters) -> list[Note]:
    kinds = h.find("mlp_layer_types")
    first = 1
    if kinds:
        first = next((index for index, kind in enumerate(kinds) if kind != "dense"), len(kinds))
        if any(kind == "dense" for kind in kinds[first:]):
            raise Unsupported(
                f"{h.source}: mlp_layer_types with dense layers behind sparse ones; "
                "llama.cpp expects the dense ones first"
            )
    h.config["first_k_dense_replace"] = first
    if h.find("rope_interleave") is False:
        raise Unsupported(f"{h.source}: rope_interleave false; llama.cpp's deepseek2 rotates pairs")
    notes = deepseek2.check(h)
    if (epsilon := h["rms_norm_eps"]) != LATENT_EPSILON:
        why = f"transformers has {LATENT_EPSILON} there, llama.cpp what the config says of all norms"
        notes.append(Note(tensor="*", what=f"norms of the latent rows with {epsilon}", why=why))
    return notes


GLM4_MOE_LITE = replace(
    deepseek2.FAMILY,
    layer=(*deepseek2.LAYER, BIAS),
    ahead=Ahead((*deepseek2.LAYER, BIAS, *BEHIND, SHARED_NORM)),
    kvs=lite_kvs,
    check=lite_check,
    leaves=later_layers,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 202752,
        "kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64,
        "v_head_dim": 256, "moe_intermediate_size": 1536,
        "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.8, "norm_topk_prob": True,
    },
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return GLM4_MOE if checkpoint.architecture == "Glm4MoeForCausalLM" else GLM4_MOE_LITE
