"""Apertus: q and k normalised by head, an MLP without a gate and with xIELU, whose parameters are tensors in
a checkpoint and key-values in a file."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ARRAY, ATTENTION, ENDS, QK_NORMS, Family, KVs, Rule, common_kvs
from quantize.gguf.families.rope import FACTORS, FREQUENCIES

ACTIVATION = "model.layers.{i}.mlp.act_fn."
#: of xIELU, and what those have that a checkpoint does not store
PARAMETERS: Mapping[str, float | None] = {"alpha_n": None, "alpha_p": None, "beta": 0.5, "eps": -1e-6}


def kvs(checkpoint: Checkpoint, h: Hyperparameters) -> KVs:
    def values(parameter: str, default: float | None) -> list[float]:
        found = []
        for layer in range(h.layers):
            name = ACTIVATION.replace("{i}", str(layer)) + parameter
            name = name if name in checkpoint.tensors else name.removeprefix(FAMILY.prefix)
            if default is not None and name not in checkpoint.tensors:
                found.append(default)
            else:
                found.append(float(checkpoint.read_float32(name).reshape(-1)[0]))
        return found

    return common_kvs(h) | {
        f"xielu.{parameter}": (values(parameter, default), ARRAY) for parameter, default in PARAMETERS.items()
    }


FAMILY = Family(
    architecture="apertus",
    layer=(
        Rule("blk.{i}.attn_norm", "model.layers.{i}.attention_layernorm"),
        Rule("blk.{i}.ffn_norm", "model.layers.{i}.feedforward_layernorm"),
        *ATTENTION,
        *QK_NORMS,
        Rule("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
        Rule("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
    ),
    ends=ENDS,
    kvs=common_kvs,
    rope=frozenset((FREQUENCIES, FACTORS)),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 12000000.0, "max_position_embeddings": 65536},
    activations=("xielu",),
    keyed=tuple(f".act_fn.{parameter}" for parameter in PARAMETERS),
    head="required",
)


def family(checkpoint: Checkpoint) -> Family:
    return replace(FAMILY, kvs=partial(kvs, checkpoint))
