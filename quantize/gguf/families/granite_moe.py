"""Granite's mixtures of experts, with and without a shared one. gate and up are one tensor, gate first."""

from dataclasses import dataclass

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import ENDS, NORMS, U32, Family, KVs, Rule
from quantize.gguf.families.granite import GRANITE, granite_kvs
from quantize.gguf.families.llama import PERMUTED_ATTENTION, ROPE
from quantize.gguf.families.operations import Operation, Part


@dataclass(frozen=True)
class Half:
    """Rows of gate (0) or up (1), each as many as the config's ``width``; ``lead`` axes stand before them."""

    index: int
    width: str
    lead: int = 0

    def __call__(self, h: Hyperparameters) -> Operation:
        return Part((2, int(h[self.width])), 0, self.index, self.index + 1, lead=self.lead)


EXPERTS = "model.layers.{i}.block_sparse_moe."
MOE = (
    Rule("blk.{i}.ffn_gate_inp", EXPERTS + "router.layer"),
    Rule("blk.{i}.ffn_gate_exps", EXPERTS + "input_linear", Half(0, "intermediate_size", 1)),
    Rule("blk.{i}.ffn_up_exps", EXPERTS + "input_linear", Half(1, "intermediate_size", 1)),
    Rule("blk.{i}.ffn_down_exps", EXPERTS + "output_linear"),
)
SHARED_MLP = "model.layers.{i}.shared_mlp."
SHARED = (
    Rule("blk.{i}.ffn_gate_shexp", SHARED_MLP + "input_linear", Half(0, "shared_intermediate_size")),
    Rule("blk.{i}.ffn_up_shexp", SHARED_MLP + "input_linear", Half(1, "shared_intermediate_size")),
    Rule("blk.{i}.ffn_down_shexp", SHARED_MLP + "output_linear"),
)  # fmt: skip


def shared(h: Hyperparameters, layer: int) -> bool:
    return bool(h.find("shared_intermediate_size"))


def kvs(h: Hyperparameters) -> KVs:
    kvs = granite_kvs(h)
    if width := h.find("shared_intermediate_size"):
        kvs["expert_shared_feed_forward_length"] = (width, U32)
    return kvs


GRANITE_MOE = Family(
    architecture="granitemoe",
    layer=(*NORMS, *PERMUTED_ATTENTION, *MOE),
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults={**GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
)
GRANITE_MOE_SHARED = Family(
    architecture="granitemoe",
    layer=(
        *NORMS,
        *PERMUTED_ATTENTION,
        *MOE,
        *(Rule(rule.target, rule.source, rule.op, when=shared) for rule in SHARED),
    ),
    ends=ENDS,
    kvs=kvs,
    rope=ROPE,
    defaults=GRANITE_MOE.defaults,
)


def family(checkpoint: Checkpoint) -> Family:
    return GRANITE_MOE if checkpoint.architecture == "GraniteMoeForCausalLM" else GRANITE_MOE_SHARED
