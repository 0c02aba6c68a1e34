"""Arcee (AFM): Llama's attention, an MLP without a gate and squared ReLU."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.decoder import ENDS, NORMS, Family, Rule, linear
from quantize.gguf.families.llama import kvs, permute_k, permute_q
from quantize.gguf.families.rope import FREQUENCIES

FAMILY = Family(
    architecture="arcee",
    layer=(
        *NORMS,
        linear("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj", permute_q),
        linear("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj", permute_k),
        linear("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=ENDS,
    kvs=kvs,
    rope=frozenset((FREQUENCIES,)),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096},
    activations=("relu2",),
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
