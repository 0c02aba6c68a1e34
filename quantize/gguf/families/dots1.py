"""dots.llm1: Qwen 3's attention without grouped keys, DeepSeek-V3's mixture without groups."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, NORMS, QK_NORMS, Family, KVs, common_kvs
from quantize.gguf.families.deepseek3 import MIXTURE, mixture_kvs


def kvs(h: Hyperparameters) -> KVs:
    h.config.pop("scoring_func", None)  # "noaux_tc", which says how the bias was trained
    return common_kvs(h) | mixture_kvs(h)


def check(h: Hyperparameters) -> list[Note]:
    if h.kv_heads != h.heads:
        raise Unsupported(
            f"{h.source}: {h.kv_heads} heads of keys for {h.heads} of queries; llama.cpp's dots1 has as many"
        )
    types = h.find("layer_types") or []
    if "sliding_attention" in types:
        raise Unsupported(f"{h.source}: sliding layers, which llama.cpp's dots1 does not have")
    return []


FAMILY = Family(
    architecture="dots1",
    layer=(*NORMS, *ATTENTION, *QK_NORMS, *MIXTURE),
    ends=ENDS,
    kvs=kvs,
    defaults={
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 0, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    },
    check=check,
    head="required",
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
