"""EXAONE 4: norms after attention and MLP, q and k normalised by head. The 32 B model, which llama.cpp knows
by its 64 layers, slides in three layers of four and rotates only there."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, ENDS, QK_NORMS, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.gemma import layer_types
from quantize.gguf.families.rope import FREQUENCIES

LAYERS_32B = 64
LAYER = (
    Rule("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    Rule("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    Rule("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    *QK_NORMS,
    Rule("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    Rule("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
    Rule("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)


def sliding(h: Hyperparameters) -> list[bool]:
    """True where a layer has a window. An older spelling of the pattern: LLLG."""
    pattern = h.find("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and not h.find("layer_types"):
        return [pattern[index % len(pattern)] == "L" for index in range(h.layers)]
    return layer_types(h, 4)


def kvs(h: Hyperparameters) -> KVs:
    kvs = common_kvs(h) | {"vocab_size": (h["vocab_size"], U32)}
    if h.layers == LAYERS_32B:
        kvs["attention.sliding_window"] = (h["sliding_window"], U32)
        kvs["attention.sliding_window_pattern"] = (sliding(h), ARRAY)
    return kvs


def check(h: Hyperparameters) -> list[Note]:
    slides = h.config.get("sliding_window") is not None
    if slides != (h.layers == LAYERS_32B):
        raise Unsupported(
            f"{h.source}: sliding_window {h.config.get('sliding_window')} with {h.layers} layers; "
            f"llama.cpp's exaone4 has sliding layers in models of {LAYERS_32B} layers only, and always there"
        )
    return []


FAMILY = Family(
    architecture="exaone4",
    layer=LAYER,
    ends=ENDS,
    kvs=kvs,
    rope=frozenset((FREQUENCIES,)),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    check=check,
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
