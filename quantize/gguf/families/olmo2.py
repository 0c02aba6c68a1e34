"""OLMo 2: norms after attention and MLP only, q and k normalised whole."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ATTENTION, ENDS, MLP, QK_NORMS, Family, KVs, Rule, common_kvs


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h)


FAMILY = Family(
    architecture="olmo2",
    layer=(
        *ATTENTION,
        *QK_NORMS,
        Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
        *MLP,
    ),
    ends=ENDS,
    kvs=kvs,
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    head="required",
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
