"""Phi-2 (attention and MLP in parallel, biases everywhere), Phi-3 and Phi-4 (fused q, k, v and gate, up, kept
fused)."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, F32, NORMS, U32, Family, KVs, Rule, plain
from quantize.gguf.families.rope import FACTORS, read_rope, unusual_rope

PHI2_LAYER = (
    plain("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    plain("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    plain("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    plain("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    plain("blk.{i}.attn_output", "model.layers.{i}.self_attn.dense"),
    plain("blk.{i}.ffn_up", "model.layers.{i}.mlp.fc1"),
    plain("blk.{i}.ffn_down", "model.layers.{i}.mlp.fc2"),
)


def rotated(h: Hyperparameters) -> int:
    return int(h.head_dim * read_rope(h).partial)


def phi2_kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (h.need("n_positions", "max_position_embeddings"), U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h.find("intermediate_size") or 4 * h.hidden, U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (h.kv_heads, U32),
        "attention.layer_norm_epsilon": (h.need("layer_norm_epsilon", "layer_norm_eps"), F32),
        "rope.dimension_count": (rotated(h), U32),
    } | unusual_rope(h)


def phi2_check(h: Hyperparameters) -> list[Note]:
    if h.find("qk_layernorm"):
        raise Unsupported(f"{h.source}: qk_layernorm, which llama.cpp's phi2 does not have")
    return []


def phi3_kvs(h: Hyperparameters) -> KVs:
    kvs: KVs = {
        "context_length": (h.need("n_positions", "max_position_embeddings"), U32),
        "rope.scaling.original_context_length": (read_rope(h).original, U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (h["intermediate_size"], U32),
        "block_count": (h.layers, U32),
        "attention.head_count": (h.heads, U32),
        "attention.head_count_kv": (h.kv_heads, U32),
        "attention.layer_norm_rms_epsilon": (h["rms_norm_eps"], F32),
        "rope.dimension_count": (rotated(h), U32),
        "rope.freq_base": (read_rope(h).theta, F32),
        # zero tells Phi-4 from Phi-3; llama.cpp has the window itself switched off
        "attention.sliding_window": (h.find("sliding_window") or 0, U32),
    }
    rope = read_rope(h)
    # llama.cpp's phi3 takes the factors whatever the type of scaling, which its converter leaves out
    if rope.kind == "longrope":
        kvs["rope.scaling.attn_factor"] = (rope.attention, F32)
    elif rope.kind != "default":
        raise Unsupported(f"{h.source}: rope scaling of type {rope.kind!r}; a Phi-3 has longrope or none")
    return kvs


def phi3_check(h: Hyperparameters) -> list[Note]:
    notes = []
    window = h.find("sliding_window")
    if window and window < h["max_position_embeddings"]:
        why = "llama.cpp disables it for phi3; logits agree up to that length"
        notes.append(Note(tensor="*", what=f"sliding window of {window} tokens not kept", why=why))
    return notes


PHI2 = Family(
    architecture="phi2",
    layer=PHI2_LAYER,
    ends=(
        Rule("token_embd", "model.embed_tokens"),
        plain("output_norm", "model.final_layernorm"),
        plain("output", "lm_head"),
    ),
    kvs=phi2_kvs,
    defaults={
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    check=phi2_check,
    activations=("gelu_new", "gelu_pytorch_tanh"),
    rotated=rotated,
)
PHI3 = Family(
    architecture="phi3",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_qkv", "model.layers.{i}.self_attn.qkv_proj"),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.gate_up_proj"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=ENDS,
    kvs=phi3_kvs,
    rope=frozenset((FACTORS,)),
    rotated=rotated,
    defaults={
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    check=phi3_check,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return PHI2 if checkpoint.architecture == "PhiForCausalLM" else PHI3
