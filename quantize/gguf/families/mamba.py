"""Mamba, Mamba 2 and FalconMamba: states only. llama.cpp wants a context length, and numbers of heads and of
an MLP, which none of them has."""

from dataclasses import replace

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, F32, HEAD, U32, Family, KVs, Rule
from quantize.gguf.families.states import groups, mamba1, mamba2

CONTEXT = 1 << 20  # any: nothing is counted
MIXER = "backbone.layers.{i}.mixer."
NORM = Rule("blk.{i}.attn_norm", "backbone.layers.{i}.norm")
ENDS = (Rule("token_embd", "backbone.embeddings"), Rule("output_norm", "backbone.norm_f"), HEAD)


def inner(h: Hyperparameters) -> int:
    return int(h.find("intermediate_size") or float(h["expand"]) * h.hidden)


def shared_kvs(h: Hyperparameters) -> KVs:
    return {
        "context_length": (CONTEXT, U32),
        "embedding_length": (h.hidden, U32),
        "feed_forward_length": (0, U32),
        "attention.head_count": (0, U32),
        "block_count": (h.layers, U32),
        "ssm.conv_kernel": (h["conv_kernel"], U32),
        "ssm.inner_size": (inner(h), U32),
        "ssm.state_size": (h["state_size"], U32),
        "attention.layer_norm_rms_epsilon": (h["layer_norm_epsilon"], F32),
    }


def kvs(h: Hyperparameters) -> KVs:
    rank = h.find("time_step_rank")
    rank = -(-h.hidden // 16) if rank in (None, "auto") else int(rank)
    return shared_kvs(h) | {"ssm.time_step_rank": (rank, U32), "ssm.dt_b_c_rms": (False, BOOL)}


def falcon_kvs(h: Hyperparameters) -> KVs:
    return kvs(h) | {"ssm.dt_b_c_rms": (True, BOOL)}


def kvs2(h: Hyperparameters) -> KVs:
    return shared_kvs(h) | {
        "ssm.time_step_rank": (inner(h) // int(h["head_dim"]), U32),
        "ssm.group_count": (groups(h), U32),
    }


def check(h: Hyperparameters) -> list[Note]:
    if inner(h) != 2 * h.hidden:
        raise Unsupported(f"{h.source}: {inner(h)} inner channels; llama.cpp's mamba has twice hidden_size")
    if h.find("use_bias") or not h["use_conv_bias"]:
        raise Unsupported(f"{h.source}: use_bias must be false and use_conv_bias true, as llama.cpp has them")
    return []


def falcon_check(h: Hyperparameters) -> list[Note]:
    own, all_norms = float(h["mixer_rms_eps"]), float(h["layer_norm_epsilon"])
    if own == all_norms:
        return check(h)
    why = f"llama.cpp has one epsilon for all norms of a file, {all_norms}"
    return [*check(h), Note(tensor="*", what=f"mixer_rms_eps {own} not kept", why=why)]


BASE = {
    "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "expand": 2, "use_bias": False, "use_conv_bias": True,
}  # fmt: skip
MAMBA = Family(
    architecture="mamba",
    layer=(NORM, *mamba1(MIXER)),
    ends=ENDS,
    kvs=kvs,
    rope=None,
    defaults={**BASE, "state_size": 16, "tie_word_embeddings": True},
    check=check,
    prefix="backbone.",
)
FALCON_MAMBA = replace(
    MAMBA, kvs=falcon_kvs, check=falcon_check, defaults={**MAMBA.defaults, "mixer_rms_eps": 1e-6}
)
MAMBA2 = Family(
    architecture="mamba2",
    layer=(NORM, *mamba2(MIXER)),
    ends=ENDS,
    kvs=kvs2,
    rope=None,
    defaults={**BASE, "state_size": 128, "head_dim": 64, "n_groups": 8, "tie_word_embeddings": False},
    check=check,
    prefix="backbone.",
)


def family(checkpoint: Checkpoint) -> Family:
    return {
        "MambaForCausalLM": MAMBA,
        "FalconMambaForCausalLM": FALCON_MAMBA,
        "Mamba2ForCausalLM": MAMBA2,
    }[checkpoint.architecture]
