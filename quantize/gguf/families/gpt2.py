"""GPT-2: learned positions, weights stored input-first."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import F32, HEAD, U32, Family, KVs, Rule, plain
from quantize.gguf.families.operations import Operation, Transpose


def transposed(h: Hyperparameters) -> Operation:
    return Transpose()


def conv(target: str, source: str) -> tuple[Rule, Rule]:
    return Rule(target, source, transposed), Rule(target, source, suffixes=(".bias",))


def kvs(h: Hyperparameters) -> KVs:
    return {
        "block_count": (h.layers, U32),
        "context_length": (h.need("n_positions", "n_ctx"), U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h.find("n_inner") or 4 * h.hidden, U32),
        "attention.head_count": (h.heads, U32),
        "attention.layer_norm_epsilon": (h["layer_norm_epsilon"], F32),
    }


FAMILY = Family(
    architecture="gpt2",
    layer=(
        plain("blk.{i}.attn_norm", "transformer.h.{i}.ln_1"),
        *conv("blk.{i}.attn_qkv", "transformer.h.{i}.attn.c_attn"),
        *conv("blk.{i}.attn_output", "transformer.h.{i}.attn.c_proj"),
        plain("blk.{i}.ffn_norm", "transformer.h.{i}.ln_2"),
        *conv("blk.{i}.ffn_up", "transformer.h.{i}.mlp.c_fc"),
        *conv("blk.{i}.ffn_down", "transformer.h.{i}.mlp.c_proj"),
    ),
    ends=(
        Rule("token_embd", "transformer.wte"),
        Rule("position_embd", "transformer.wpe"),
        plain("output_norm", "transformer.ln_f"),
        HEAD,
    ),
    kvs=kvs,
    rope=None,
    defaults={"layer_norm_epsilon": 1e-5, "n_positions": 1024, "tie_word_embeddings": True},
    prefix="transformer.",
    activations=("gelu_new", "gelu_pytorch_tanh"),
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
