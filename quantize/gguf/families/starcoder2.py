"""StarCoder 2: layer norms and biases everywhere, an MLP without gate."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import HEAD, Family, KVs, Rule, common_kvs, plain


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h)


def check(h: Hyperparameters) -> list[Note]:
    window = h.find("sliding_window")
    if not window or window >= h["max_position_embeddings"]:
        return []
    why = "llama.cpp's starcoder2 has no sliding window; logits agree up to that length"
    return [Note(tensor="*", what=f"sliding window of {window} tokens not kept", why=why)]


FAMILY = Family(
    architecture="starcoder2",
    layer=(
        plain("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        plain("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        plain("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        plain("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        plain("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        plain("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        plain("blk.{i}.ffn_up", "model.layers.{i}.mlp.c_fc"),
        plain("blk.{i}.ffn_down", "model.layers.{i}.mlp.c_proj"),
    ),
    ends=(
        Rule("token_embd", "model.embed_tokens"),
        plain("output_norm", "model.norm"),
        HEAD,
    ),
    kvs=kvs,
    defaults={
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    check=check,
    activations=("gelu_pytorch_tanh", "gelu_new"),
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
