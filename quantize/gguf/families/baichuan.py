"""Baichuan 1 and 2: Llama with q, k, v in one tensor. Baichuan 2's code normalises the rows of the head; here
it is done once."""

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import MLP, NORMS, STRING, U32, Family, KVs, Rule, common_kvs
from quantize.gguf.families.llama import DEFAULTS, permute_k, permute_q
from quantize.gguf.families.operations import COPY, Normalise, Operation, Part


def part(h: Hyperparameters, index: int, then: Operation) -> Operation:
    return Part((3, h.hidden), 0, index, index + 1, then)


def queries(h: Hyperparameters) -> Operation:
    return part(h, 0, permute_q(h))


def keys(h: Hyperparameters) -> Operation:
    return part(h, 1, permute_k(h))


def values(h: Hyperparameters) -> Operation:
    return part(h, 2, COPY)


def second(h: Hyperparameters) -> bool:
    """Baichuan 2 is recognised by its vocabulary or by the loss term that came with it."""
    return h["vocab_size"] == 125696 or h.find("z_loss_weight") is not None


def head(h: Hyperparameters) -> Operation:
    return Normalise() if second(h) else COPY


def check(h: Hyperparameters) -> list[Note]:
    if h.layers not in (32, 40):
        raise Unsupported(
            f"{h.source}: {h.layers} layers; llama.cpp's baichuan "
            "knows 32 (rotated) and 40 (ALiBi), no others"
        )
    if not second(h):
        return []
    why = "Baichuan 2's own code does that at every step; llama.cpp's converter does not"
    return [Note(tensor="lm_head.weight", what="rows scaled to length one", why=why)]


def kvs(h: Hyperparameters) -> KVs:
    return common_kvs(h) | {
        "tensor_data_layout": ("Meta AI original pth", STRING),
        "rope.dimension_count": (h.hidden // h.heads, U32),
    }


FUSED = "model.layers.{i}.self_attn.W_pack"
FAMILY = Family(
    architecture="baichuan",
    layer=(
        *NORMS,
        Rule("blk.{i}.attn_q", FUSED, queries),
        Rule("blk.{i}.attn_k", FUSED, keys),
        Rule("blk.{i}.attn_v", FUSED, values),
        Rule("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
        *MLP,
    ),
    ends=(
        Rule("token_embd", "model.embed_tokens"),
        Rule("output_norm", "model.norm"),
        Rule("output", "lm_head", head),
    ),
    kvs=kvs,
    defaults=DEFAULTS,
    check=check,
)


def family(checkpoint: Checkpoint) -> Family:
    return FAMILY
