"""Bamba: Mamba 2 beside attention of which half of each head is rotated; llama.cpp's granitehybrid."""

from collections.abc import Sequence

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import BOOL, F32, U32, Family, KVs, common_kvs, linear
from quantize.gguf.families.hybrid import (
    FFN_NORMS,
    FINAL,
    MIXER,
    MLP,
    attends,
    attention_layers,
    heads_kv,
    mamba2_kvs,
    states,
    unclamped,
    within,
)
from quantize.gguf.families.operations import Operation, Shape
from quantize.gguf.families.rope import read_rope
from quantize.gguf.families.states import mamba2


class PartlyPermuted:
    """Rows of q or k: among each head's rotated ones, (i, i + n/2) come to (2i, 2i + 1)."""

    def __init__(self, keys: bool):
        self.keys = keys

    def __call__(self, h: Hyperparameters) -> Operation:
        return HeadPermutation(h.kv_heads if self.keys else h.heads, bamba_rotated(h))


class HeadPermutation(Operation):
    def __init__(self, heads: int, rotated: int):
        self.heads, self.rotated = heads, rotated

    def _moved(self, array: np.ndarray, back: bool) -> np.ndarray:
        heads = array.reshape(self.heads, -1, *array.shape[1:]).copy()
        pairs = (-1, 2) if back else (2, -1)
        front = heads[:, : self.rotated].reshape(self.heads, *pairs, *array.shape[1:])
        heads[:, : self.rotated] = front.swapaxes(1, 2).reshape(self.heads, self.rotated, *array.shape[1:])
        return heads.reshape(array.shape)

    def build(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self._moved(arrays[0], False)

    def restore(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [self._moved(array, True)]


def bamba_rotated(h: Hyperparameters) -> int:
    return int(h.find("attn_rotary_emb") or h.head_dim * read_rope(h).partial)


def bamba_kvs(h: Hyperparameters) -> KVs:
    return (
        common_kvs(h)
        | {
            "vocab_size": (h["vocab_size"], U32),
            "rope.dimension_count": (bamba_rotated(h), U32),
            "rope.scaling.finetuned": (True, BOOL),
            "logit_scale": (1.0, F32),
        }
        | heads_kv(h, attention_layers(h))
        | mamba2_kvs(h)
    )


SELF = "model.layers.{i}.self_attn."
FAMILY = Family(
    architecture="granitehybrid",
    layer=(
        *FFN_NORMS,
        *within(
            (
                linear("blk.{i}.attn_q", SELF + "q_proj", PartlyPermuted(False)),
                linear("blk.{i}.attn_k", SELF + "k_proj", PartlyPermuted(True)),
                linear("blk.{i}.attn_v", SELF + "v_proj"),
                linear("blk.{i}.attn_output", SELF + "o_proj"),
            ),
            attends,
        ),
        *within(mamba2(MIXER), states),
        *MLP,
    ),
    ends=FINAL,
    kvs=bamba_kvs,
    rotated=bamba_rotated,
    defaults={
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "max_position_embeddings": 262144, "num_key_value_heads": 8,
        "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
    },
    check=unclamped,
)  # fmt: skip


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
